"""Trains the learned policies (Re-SpS and LTD) on recorded answers with reinforcement learning."""
