import pytest

from mammoray import findings
from mammoray.findings import Finding


def test_each_case_is_a_finding_until_there_are_too_many_and_then_the_rest_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of(name: str) -> Finding:
        return Finding(severity="error", image_id=name, file=name, reason="the row has no file")

    assert [finding.image_id for finding in findings.each(["a", "b"], of)] == ["a", "b"]
    assert findings.each([], of) == []
    monkeypatch.setattr(findings, "LISTED", 3)
    made = findings.each(list("abcdefgh"), of)
    assert [finding.image_id for finding in made] == ["a", "b", "c", ""]
    assert made[-1].found == "5 more of these"
    assert sum(finding.count for finding in made) == 8
    assert made[-1].reason == "the row has no file"
