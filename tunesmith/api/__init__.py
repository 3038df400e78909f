"""The public functions: what the command line calls, and what `import tunesmith` offers.

check      read data files and say what is in them
train      a job -> a run folder
plan       what a job will take in memory, disk and time, and whether it fits
verify     a job's gradients against the naive computation
verify_resume  a training that is killed and gone on with, against one that isn't
runs, open_run, summary    look at run folders
load       a model or a run that answers: model.chat(…), model.stream(…), model.complete(…)
generate   answers for every prompt of a file
sweep      the same prompts under many settings
blind_new  a test by people of two models' answers, sealed
evaluate   figures of one model on rows with answers
compare    figures of two, row by row
export     a result as files for other programs, compared with what it came from
judge      a model's verdicts on two sides' answers, or grades by a rubric
serve      models and runs behind OpenAI's API
report     write the report of a run or a result: a page, Markdown, JSON
report_text    the same as text
"""

from tunesmith.api.answering import generate, load, sweep
from tunesmith.api.folders import open_run, runs, summary
from tunesmith.api.judging import judge
from tunesmith.api.proof import blind_new, compare, evaluate
from tunesmith.api.taking import export
from tunesmith.api.training import check, plan, train, verify, verify_resume
from tunesmith.evaluate.report.write import report, report_text
from tunesmith.serve.run import serve

__all__ = [
    "blind_new",
    "check",
    "compare",
    "evaluate",
    "export",
    "generate",
    "judge",
    "load",
    "open_run",
    "plan",
    "report",
    "report_text",
    "runs",
    "serve",
    "summary",
    "sweep",
    "train",
    "verify",
    "verify_resume",
]
