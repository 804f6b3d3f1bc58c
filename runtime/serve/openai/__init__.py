"""The HTTP bodies of OpenAI's interface: requests in, responses out."""
