"""The report of a run, for people."""

from __future__ import annotations

from collections import Counter

from tests.chaos.checks import Check
from tests.chaos.record import Call, End, Kind

_MOST_SHOWN = 8


def report(faults: Counter[str], calls: list[Call], checks: list[Check], seconds: float) -> str:
    """Faults by kind, jobs by kind and end, checks by count; then what is wrong."""
    lines = [f"{'fault':<44} {'times':>6}"]
    lines += [f"{name:<44} {count:>6}" for name, count in sorted(faults.items())]
    lines += [f"{'in all':<44} {faults.total():>6}", ""]
    ends = list(End)
    lines.append(f"{'jobs':<16}" + "".join(f"{end:>11}" for end in ends) + f"{'in all':>9}{'accepted':>10}")
    for kind in [*Kind, None]:
        of_kind = [call for call in calls if kind in {None, call.kind}]
        counts = Counter(call.end for call in of_kind)
        accepted = sum(call.accepted for call in of_kind)
        row = f"{kind or 'in all':<16}" + "".join(f"{counts[end]:>11}" for end in ends)
        lines.append(f"{row}{len(of_kind):>9}{accepted:>10}")
    codes = Counter(call.code or "(no code)" for call in calls if call.end == End.ERROR)
    lines += ["", "errors: " + (", ".join(f"{code} {n}" for code, n in codes.most_common()) or "none"), ""]
    lines.append(f"{'check':<68} {'seen':>6} {'excused':>8} {'wrong':>6}")
    for check in checks:
        lines.append(f"{check.name:<68} {check.looked_at:>6} {check.excused:>8} {len(check.wrong):>6}")
    for check in checks:
        if check.wrong:
            lines += ["", f"WRONG: {check.name}"]
            lines += [f"  {wrong}" for wrong in check.wrong[:_MOST_SHOWN]]
            if len(check.wrong) > _MOST_SHOWN:
                lines.append(f"  ... and {len(check.wrong) - _MOST_SHOWN} more")
    wrong = sum(len(check.wrong) for check in checks)
    accepted = sum(call.accepted for call in calls)
    verdict = "all is as it should be" if not wrong else f"{wrong} things are wrong"
    lines += ["", f"{accepted} jobs accepted, {faults.total()} faults, {seconds:.0f} s: {verdict}"]
    return "\n".join(lines)
