"""Programs that repeat the tables of docs/lab. Each one says in its docstring which question it answers."""
