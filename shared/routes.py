"""The paths of the OpenAI API that a task may ask for."""

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ROUTES = (CHAT, COMPLETIONS)
