"""The gRPC messages of another vendor, as JSON (message → field → what it is): ``describe_messages.py MODULE``."""

import importlib
import json
import sys


def describe(messages) -> dict:
    found = {}
    for message in messages:
        kinds = {}
        for field in message.fields:
            many = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
            kinds[field.name] = [field.number, field.type, bool(many)]
        found[message.full_name] = kinds
        found |= describe(message.nested_types)
    return found


json.dump(describe(importlib.import_module(sys.argv[1]).DESCRIPTOR.message_types_by_name.values()), sys.stdout)
