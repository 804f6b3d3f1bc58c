"""``resps-serve``: an OpenAI-compatible HTTP server over one engine directory. It needs the extra ``serve``; nothing else imports it."""
