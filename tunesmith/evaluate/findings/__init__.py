"""What a comparison tells beyond means, as `result["findings"]`; imports no torch.

general.jsonl is this project's own work, under its licence (Apache-2.0).
"""

from tunesmith.evaluate.findings.sections import sections

__all__ = ["sections"]
