"""One OpenAI-compatible endpoint: what it is asked, what it answers, and what it is able to do.

`messages` defines requests and answers, `request_body` and `wire` translate them to and from the
API, and `extras` are what a user adds to each request. `transport` makes one attempt over HTTP;
`refusals` and `connections` say what went wrong and whether another attempt helps. `client`
retries, and `probe` and `description` find out what kind of server it is.
"""
