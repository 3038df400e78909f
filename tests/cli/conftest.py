"""What tests of commands share with those of evaluation."""

from tests.evaluate.conftest import few_questions

__all__ = ["few_questions"]
