"""Records answers with every tree the draft could have grown, and replays policies on them in simulated time."""
