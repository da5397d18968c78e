#!/usr/bin/env python3
"""Prints what every role may do, as Markdown, from infra/template.json. Needs Python 3.10, nothing else.

    python3 docs/iam-table.py            prints the tables
    python3 docs/iam-table.py --write    puts them between the marks in docs/security.md
    python3 docs/iam-table.py --check    ends with 1 when docs/security.md is stale
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/security.md"
BEGIN, END = "<!-- iam-table: begin (python3 docs/iam-table.py --write) -->", "<!-- iam-table: end -->"

# Log delivery of Step Functions: eight actions without a resource type, the same in both state machines' roles.
LOG_DELIVERY = {
    "logs:CreateLogDelivery", "logs:DeleteLogDelivery", "logs:DescribeLogGroups", "logs:DescribeResourcePolicies",
    "logs:GetLogDelivery", "logs:ListLogDeliveries", "logs:PutResourcePolicy", "logs:UpdateLogDelivery",
}


def flat(value):
    """A CloudFormation value as text: references in angle brackets, imports by what they import."""
    match value:
        case str():
            return value
        case {"Ref": "AWS::NoValue"}:
            return ""
        case {"Ref": name}:
            return f"<{name}>"
        case {"Fn::GetAtt": [name, *_]}:
            return f"<{name}>"
        case {"Fn::ImportValue": name}:
            return f"<{imported(flat(name))}>"
        case {"Fn::Join": [separator, parts]}:
            return separator.join(flat(part) for part in parts)
        case {"Fn::If": [_, then, _]}:
            return flat(then)
        case {"Fn::Sub": str(text)}:
            return re.sub(r"\$\{([^}]+)\}", r"<\1>", text)
        case {"Fn::Sub": [text, values]}:
            return re.sub(r"\$\{([^}]+)\}", lambda m: flat(values[m[1]]) if m[1] in values else f"<{m[1]}>", text)
        case _:
            return json.dumps(value)


def imported(name):
    """What CDK's export `stack:ExportsOutputRefDocumentsBucket9EC9DEB7…` stands for."""
    name = re.sub(r"^tunesmith-\w+:ExportsOutput(Ref|FnGetAtt)", "", name)
    return re.sub(r"[0-9A-F]{8}(Arn)?[0-9A-F]{8}$", "", name)


WORDS = [
    (r"<DocumentsBucket[0-9A-F]*>", "documents"), (r"<WorkspaceBucket[0-9A-F]*>", "workspace"),
    (r"<Ledger[0-9A-F]*>", "the table"), (r"<NotificationsTopic[0-9A-F]*>", "topic notifications"),
    (r"<Notifications[0-9A-F]*>", "topic notifications"), (r"<Alarms(Topic)?[0-9A-F]*>", "topic alarms"),
    (r"<TrainerImages[0-9A-F]*>", "repository tunesmith-trainer"),
    (r"arn:<AWS::Partition>:(\w+):<AWS::Region>:<AWS::AccountId>:", r"\1 "),
    (r"arn:<AWS::Partition>:(\w+):<AWS::Region>::", r"\1 "),
    (r"<MachinesRole[0-9A-F]*>", "role of training machines"), (r"<AWS::AccountId>$", "this account"),
    (r"<EndpointRole[0-9A-F]*>", "role of endpoints"), (r"<QuietScheduleRole[0-9A-F]*>", "role of quiet schedules"),
    (r"<MachinesTemplate[0-9A-F]*>", "tunesmith-training"), (r"<NetworkTrainingMachines[0-9A-F]*>", "of training machines"),
    (r"<NetworkSubnet(\d)[0-9A-F]*>", r"\1"), (r"<(\w+?)Function[0-9A-F]{8}>", r"function \1"),
    (r"<(\w+?)Log[0-9A-F]{8}>", "own log group"), (r"<(\w+?)Queue[0-9A-F]{8}>", r"queue \1"),
    (r"<ScheduleDeadLetters[0-9A-F]{8}>", "queue of schedules' dead letters"),
    (r"<(\w+?)Machine[0-9A-F]{8}>", r"state machine \1"),
]


def words(resource):
    for pattern, word in WORDS:
        resource = re.sub(pattern, word, resource)
    return resource


def many(value):
    return value if isinstance(value, list) else [value]


def rows(role):
    """(actions, resources, condition) of each statement, actions that share resources and condition together."""
    merged = {}
    for policy in role.get("Policies", []):
        for statement in policy["PolicyDocument"]["Statement"]:
            actions = set(many(statement["Action"]))
            if actions == LOG_DELIVERY:
                actions = {"log delivery (8 actions `logs:*LogDelivery*`, see the note)"}
            resources = tuple(r for r in (words(flat(r)) for r in many(statement["Resource"])) if r)
            merged.setdefault((resources, condition(statement.get("Condition"))), set()).update(actions)
    return [(sorted(actions), resources, when) for (resources, when), actions in merged.items()]


def condition(given):
    parts = []
    for operator, keys in (given or {}).items():
        for key, values in keys.items():
            parts.append(f"{operator} {key} = {', '.join(words(flat(v)) for v in many(values))}")
    return "; ".join(parts)


def trust(role):
    parts = []
    for statement in role["AssumeRolePolicyDocument"]["Statement"]:
        text = flat(statement["Principal"]["Service"])
        when = condition(statement.get("Condition"))
        parts.append(f"{text}, only if {when}" if when else text)
    return "; ".join(parts)


def tables():
    stacks = json.loads((ROOT / "infra/template.json").read_text())["stacks"]
    found = [
        (role["Properties"].get("Description", name), role["Properties"])
        for stack in stacks
        for name, role in stack["template"]["Resources"].items()
        if role["Type"] == "AWS::IAM::Role"
    ]
    out = []
    for description, role in sorted(found, key=lambda item: item[0]):
        out += [f"#### {description}", "", f"Taken on by {trust(role)}.", "", "| actions | on | condition |", "|---|---|---|"]
        for actions, resources, when in rows(role):
            shown = ", ".join(a if a.startswith("log delivery") else f"`{a}`" for a in actions)
            out.append(f"| {shown} | {'<br>'.join(escape(r) for r in resources)} | {escape(when)} |")
        out.append("")
    return "\n".join(out)


def escape(text):
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("*", "\\*").replace("|", "\\|")


def main():
    mode = sys.argv[1:]
    if not mode:
        print(tables())
        return 0
    if mode not in (["--write"], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    fresh = f"{head}{BEGIN}\n\n{tables()}\n{END}{rest.split(END)[1]}"
    if mode == ["--write"]:
        PAGE.write_text(fresh)
    elif fresh != page:
        print("docs/security.md: the IAM tables are stale; run python3 docs/iam-table.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
