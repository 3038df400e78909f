"""The blind test: people say which of two answers is better without knowing whose is whose.

answers     two models' answers to the same prompts, from files
draw        which rows are shown, in which order, on which side: by a seed
folder      the test on disk: what raters see, and what is sealed
new         a test from two models or files, continued after an interruption
ratings     what raters said, appended as it comes
page        the page for raters, as a file or for the local server
tally       figures of the votes
report      unsealing, and the report

No torch: only `new` needs a model, and is handed a function that asks it.
"""
