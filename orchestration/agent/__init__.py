"""A small agent: a model that answers queries in an environment, and what it did as raw records.

    environment.py     what an environment is: an opening, tools, and what comes of a call
    textworld.py       a TextWorld game
    functions.py       Python functions that the user gives
    openapi.py         the operations of an HTTP service that an OpenAPI file describes
    styles.py          how the model is told of tools, and says what it does: calls, or ReAct text
    model.py           the model behind an OpenAI-compatible endpoint
    loop.py            model and environment in turn, until one of them ends it or a limit does
    records.py         an episode as a record, and the file of them below raw/
    command.py         `trajlake agent`

What a model writes is data: it picks one of the tools that are listed, and its arguments are
checked before anything is called.
"""
