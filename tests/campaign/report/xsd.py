"""As much of XML Schema as junit-10.xsd uses: elements, their children in any order and number, attributes, patterns.

A sequence counts as a choice, as that schema has no sequence of two different elements but in `rerunType`.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

XS = "{http://www.w3.org/2001/XMLSchema}"


class XmlSchema:
    """The schema in a file."""

    def __init__(self, path: Path) -> None:
        self._root = ET.parse(path).getroot()
        known = {"schema", "element", "complexType", "simpleType", "restriction", "pattern", "sequence", "choice"}
        assert {element.tag.removeprefix(XS) for element in self._root.iter()} <= known | {"attribute"}

    @cached_property
    def _elements(self) -> dict[str, Element]:
        return {element.attrib["name"]: element for element in self._root.findall(f"{XS}element")}

    @cached_property
    def _types(self) -> dict[str, Element]:
        return {one.attrib["name"]: one for one in self._root.findall(f"{XS}complexType")}

    @cached_property
    def _patterns(self) -> dict[str, str]:
        return {
            one.attrib["name"]: one.find(f".//{XS}pattern").attrib["value"]  # type: ignore[union-attr]
            for one in self._root.findall(f"{XS}simpleType")
        }

    def problems(self, element: Element) -> Iterator[str]:
        """What of an element and all below it the schema does not allow."""
        declared = self._elements.get(element.tag)
        if declared is None:
            yield f"<{element.tag}> is not declared"
            return
        kind = declared.find(f"{XS}complexType")
        kind = self._types.get(declared.get("type", ""), kind) if kind is None else kind
        if kind is None:
            yield from (f"<{child.tag}> in <{element.tag}>" for child in element)
            return
        if (element.text or "").strip() and kind.get("mixed") != "true":
            yield f"text in <{element.tag}>"
        yield from self._attributes(element, kind)
        allowed = {one.get("ref") or one.get("name") for one in kind.iter(f"{XS}element")}
        for child in element:
            if child.tag not in allowed:
                yield f"<{child.tag}> in <{element.tag}>"
            yield from self.problems(child)

    def _attributes(self, element: Element, kind: Element) -> Iterator[str]:
        declared = {one.attrib["name"]: one for one in kind.findall(f"{XS}attribute")}
        yield from (f"{name} of <{element.tag}>" for name in element.attrib if name not in declared)
        for name, one in declared.items():
            if name not in element.attrib:
                yield from [f"no {name} of <{element.tag}>"] if one.get("use") == "required" else []
            elif not re.fullmatch(self._patterns.get(one.attrib["type"], r"[\s\S]*"), element.attrib[name]):
                yield f"{name} of <{element.tag}> is {element.attrib[name]}"
