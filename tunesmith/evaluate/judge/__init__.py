"""A model as judge: two answers against each other, in both orders, or answers by a rubric.

prompts    what the judge is asked, in English and Chinese
replies    its JSON, read strictly
rubric     criteria with weights
asking     calls through a worklog: each once, a malformed reply repaired once
pairs      verdicts of both orders -> wins, ties, flips, positions
graded     scores by criterion -> means, differences
people     agreement with a blind test's votes
measure    from names to files
sections   the result as tables, for terminal and reports
"""
