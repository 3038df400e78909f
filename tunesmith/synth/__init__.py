"""Training rows from a person's own documents: one model writes them, another judges them.

documents -> text -> chunks -> parts (train, valid, test) -> prompts -> calls, through the ledger -> rows that
are filtered, judged and counted. Models are Completers that the API hands over.
"""
