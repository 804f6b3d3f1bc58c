"""The form that an answer must have: a JSON schema, a regular expression, a choice or a grammar."""
