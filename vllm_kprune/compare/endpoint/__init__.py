"""One OpenAI-compatible endpoint: what it is asked, what it answers, and what it is able to do.

`messages` defines requests and answers, `request_body` and `wire` translate them to and from the
API, `transport` makes one attempt over HTTP, `client` retries, and `probe` and `description` find
out what kind of server it is.
"""
