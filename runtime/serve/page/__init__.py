"""The page that shows what speculation does, and its stream of events."""
