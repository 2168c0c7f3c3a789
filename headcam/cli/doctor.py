"""`headcam doctor`: what this machine can do, and what is missing."""

from collections.abc import Sequence

from headcam.cli.options import say, verb_parser


def main(arguments: Sequence[str]) -> int:
    """Print the findings; returns 1 where something that is needed is missing."""
    parser = verb_parser("doctor", "Say what this machine can do, and what is missing.", "headcam doctor")
    parser.parse_args(list(arguments))

    from headcam.doctor import examine

    findings = examine()
    width = max(len(f.what) for f in findings)
    part = ""
    for finding in findings:
        if finding.part != part:
            part = finding.part
            say(f"{part}:")
        mark = "ok" if finding.ok else ("!!" if finding.needed else "--")
        fix = f"   ({finding.fix})" if not finding.ok and finding.fix else ""
        say(f"  {mark}  {finding.what:<{width}}  {finding.found}{fix}")
    missing = [f.what for f in findings if f.needed and not f.ok]
    say(
        f"missing: {', '.join(missing)}"
        if missing
        else "all that headcam needs is here (-- marks what it can do without)"
    )
    return 1 if missing else 0
