"""Griffe extension: show the types and defaults of the fields of structs, as griffe does for dataclasses."""

from __future__ import annotations

from typing import Any

from griffe import Attribute, Class, Extension, Function, Parameter, ParameterKind, Parameters


class Structs(Extension):
    """Gives each subclass of ``msgspec.Struct`` the constructor that it has at run time."""

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """Add the constructor of a class whose members are known."""
        if not any(getattr(base, "canonical_path", None) == "msgspec.Struct" for base in cls.bases):
            return
        fields = [
            member
            for member in cls.members.values()
            if isinstance(member, Attribute)
            and member.annotation is not None
            and "property" not in member.labels
            and "instance-attribute" in member.labels
        ]
        kind = ParameterKind.positional_or_keyword
        parameters = [Parameter("self", kind=kind)] + [
            Parameter(
                field.name,
                annotation=field.annotation,
                kind=kind,
                default=field.value,
                docstring=field.docstring,
            )
            for field in fields
        ]
        cls.set_member("__init__", Function("__init__", parameters=Parameters(*parameters), returns="None"))
