"""Parts of an answer besides its text: calls of functions, in the forms that model families write them, and reasoning."""
