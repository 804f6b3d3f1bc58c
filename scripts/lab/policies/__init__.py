"""What repeats the tables of docs/lab/policies.md."""
