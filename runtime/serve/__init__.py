"""``resps-serve``: an OpenAI-compatible HTTP server over one engine directory. Needs the extra ``serve``; nothing else imports it."""
