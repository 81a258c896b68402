"""Counts the steps of checking a value against a JSON Schema, before the check runs.

A small body can make a check long: the number of its elements is multiplied by the number of
branches of the schema. So each check has a budget of steps, and a check that needs more does not
run. The count depends only on the schema and the value, so it is equal on every machine. Time and
memory have no influence.

The count is an upper bound: it assumes that every subschema that may apply to a value is checked,
in full. One step stands for about 50 ns of the validator on a slow machine. The weights below were
measured with the validator; `tests/property/test_schema_budget.py` searches for a check that takes
longer than its steps.

`Place` is the central idea: the set of the subschemas that apply at one place of a value. The
places of a schema form a finite graph, and counting follows the value through this graph. A place
knows what one string, number, list or object costs there, so most values cost one lookup.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jsonschema_rs

from .limits import LIMITS
from .pattern_size import pattern_size
from .schema_keywords import BY_FIELD, compiled, in_place, name_of, subschemas
from .step_budget import TooManySteps

#: subschemas in all places of one schema together, without the places that a device may choose
PLACED_MAX = 20_000
#: further places that are remembered; beyond this, all of them are forgotten
CHOSEN_MAX = 500
#: making a place takes this for each of its subschemas, and this for each of the place above
MAKING_STEPS, MAKING_STEPS_ABOVE = 40, 6
#: A keyword `unevaluated...` checks the subschemas beside it again. Nested ones multiply.
UNEVALUATED_FACTOR = 4
#: counting itself takes time too: of one object or list, and of one member
CONTAINER_STEPS, MEMBER_STEPS = 20, 8
#: hashing one value for `uniqueItems`
UNIQUE_STEPS = 8
FORMAT_STEPS = 10

#: numbers outside of this range are compared with exact arithmetic of up to 1,000 bits
ORDINARY_MIN, ORDINARY_MAX = 1e-6, 1e9
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
#: kinds of numbers: an integer up to `ORDINARY_MAX`, a larger one, a float in and out of the range
INT, LARGE_INT, FLOAT, EXTREME = range(4)
#: steps of comparing a value of each kind, by the kind of the bound
COMPARE = {
    INT: (2, 2, 8, 120),
    LARGE_INT: (2, 2, 8, 120),
    FLOAT: (30, 240, 60, 900),
    EXTREME: (240, 320, 120, 900),
}
DIVIDE = {
    INT: (3, 3, 16, 120),
    LARGE_INT: (3, 3, 16, 120),
    FLOAT: (70, 450, 160, 1_800),
    EXTREME: (900, 1_400, 900, 1_800),
}
EQUAL = {
    INT: (8, 8, 16, 120),
    LARGE_INT: (8, 240, 16, 120),
    FLOAT: (30, 240, 70, 700),
    EXTREME: (240, 320, 160, 900),
}
#: steps of one character: in a format or a length, and in a pattern of few parts, whose states the
#: engine remembers; in a larger pattern, for each part
CHARACTER_STEPS = 1 / 8
SMALL_PATTERN = 6
PART_STEPS = 0.4


_Name = tuple[tuple[int, int], ...]  #: of a place: (identity of a subschema, how often it applies)


class StepCounter:
    """Counts the steps of checking values against one schema. The schema must have been checked.
    Several threads may use one counter at the same time.

    The places that follow from the schema alone are made in advance. The names in a value may lead
    to others, because each set of patterns that a name matches is a place. A value may so make many
    places, and each visit of such a place costs the steps of making it, whether or not it is
    remembered.
    """

    def __init__(self, schema: Mapping[str, Any]):
        self._definitions = schema.get("$defs", {})
        self._weights: dict[int, _Weights] = {}  # by identity; the schema keeps the parts alive
        self._schema = schema
        self._chosen: dict[_Name, Place] = {}
        self._places: dict[_Name, Place] = {}
        self._placed = 0
        self._is_made = False
        #: the most subschemas at one place
        self.parts_max = 0
        #: whether all places of the schema were made in advance
        self.is_whole = self._make([schema])
        self._make(part for _, part in subschemas("", schema))  # the search counts them alone
        self._is_made = True

    def _make(self, roots: Iterable[Any]) -> bool:
        """Makes the places below these subschemas, level by level. Returns whether it made all of
        them: it ends at `PLACED_MAX`."""
        waiting = [self.place([(root, 1)]) for root in roots]
        for _ in range(LIMITS.nesting_max + 1):
            below: list[Place] = []
            for place in waiting:
                for roots_below in place.below():
                    before = len(self._places)
                    found = self.place(roots_below)
                    if len(self._places) > before:
                        below.append(found)
                    if self._placed > PLACED_MAX:
                        return False
            waiting = below
        return True

    def count(self, value: Any, most: int) -> int:
        """Returns how many steps a check of `value` needs. Raises `TooManySteps`, and stops
        counting, as soon as these are more than `most`."""
        return self.count_of(self._schema, value, most)

    def count_of(self, part: Any, value: Any, most: int) -> int:
        """Does the same for one subschema `part` of the schema."""
        walk = _Walk(self, most)
        walk.visit(self.place([(part, 1)]), value)
        if walk.left < 0:
            raise TooManySteps
        return most - walk.left

    def place(self, roots: Iterable[tuple[Any, int]]) -> Place:
        """Returns the place at which these subschemas apply, each so many times."""
        times: dict[int, int] = {}
        parts: dict[int, Any] = {}
        for part, often in roots:
            key = id(part) if isinstance(part, dict) else 0  # `true` and `false` cost the same
            times[key] = times.get(key, 0) + often
            parts[key] = part
        name = tuple(sorted(times.items()))
        found = self._places.get(name) or self._chosen.get(name)
        if found is None:
            is_chosen = self._is_made or self._placed > PLACED_MAX
            found = Place(self, [(parts[key], often) for key, often in name], is_chosen)
            if is_chosen:
                if len(self._chosen) >= CHOSEN_MAX:
                    self._chosen.clear()
                self._chosen[name] = found
            else:
                self._placed += len(found.parts) + 1
                self.parts_max = max(self.parts_max, sum(often for _, often in found.parts))
                self._places[name] = found
        return found

    def applied(self, roots: Iterable[tuple[Any, int]]) -> dict[int, tuple[Any, int]]:
        """Returns all subschemas that apply to a value together with `roots`, as {identity:
        (subschema, how often it is checked)}."""
        found: dict[int, tuple[Any, int]] = {}
        waiting = list(roots)
        while waiting:
            part, often = waiting.pop()
            if not isinstance(part, dict):
                continue
            _, before = found.get(id(part), (part, 0))
            found[id(part)] = part, before + often
            if "unevaluatedProperties" in part or "unevaluatedItems" in part:
                often *= UNEVALUATED_FACTOR
            waiting += ((below, often) for below in in_place(part))
            if "$ref" in part:
                waiting.append((self._definitions[name_of(part["$ref"])], often))
        return found

    def count_items(self, part: Any, items: list[Any], most: int) -> int:
        """Returns how many steps a check of several values against the subschema `part` needs.
        Raises `TooManySteps` if these are more than `most`."""
        walk = _Walk(self, most)
        if items:
            walk.visit_items(self.place([(part, 1)]), items)
        if walk.left < 0:
            raise TooManySteps
        return most - walk.left

    def weights(self, part: Mapping[str, Any]) -> _Weights:
        found = self._weights.get(id(part))
        if found is None:
            found = self._weights[id(part)] = _Weights(part)
        return found


class Place:
    """The subschemas that apply at one place of a value, and what a value costs there."""

    def __init__(self, counter: StepCounter, roots: list[tuple[Any, int]], is_chosen: bool):
        self._counter = counter
        self.parts = list(counter.applied(roots).values())
        #: steps by the type of a value, without its members and characters
        self.by_type = dict.fromkeys(
            _TYPES, sum(often for part, often in roots if not isinstance(part, dict))
        )
        #: further steps for a large integer, and for an extreme float
        self.large, self.extreme = 0, 0
        self.by_character = 0.0
        self.by_member = MEMBER_STEPS
        self.by_unique = 0
        #: (steps by character, compiled pattern) of each pattern of `patternProperties`
        self.patterns: list[tuple[float, jsonschema_rs.Validator]] = []
        prefixes = 0
        for part, often in self.parts:
            weights = counter.weights(part)
            for kind, steps in weights.by_type.items():
                self.by_type[kind] += often * steps
            self.large += often * weights.large
            self.extreme += often * weights.extreme
            self.by_character += often * weights.by_character
            self.by_member += often * weights.by_member
            self.by_unique += often * weights.by_unique
            self.patterns += [(often * steps, pattern) for steps, pattern in weights.patterns]
            prefixes = max(prefixes, len(part.get("prefixItems", ())))
        if len(self.patterns) > 1:
            self.by_member += MAKING_STEPS_ABOVE * len(self.parts)
        if is_chosen:
            for kind in self.by_type:
                self.by_type[kind] += MAKING_STEPS * (1 + len(self.parts))
        self.by_type[dict] += CONTAINER_STEPS
        self.by_type[list] += CONTAINER_STEPS
        self.by_character += 1 / 64
        self.is_plain = not (self.large or self.extreme)
        self.prefixes = prefixes
        #: the places of the named properties, `None` until they are known
        self.members: dict[str, Place | None] = {
            name: None for part, _ in self.parts for name in part.get("properties", ())
        }
        #: the place of all other properties, once it is known; `None` if patterns decide it
        self.others: Place | None = None
        self._others: dict[tuple[bool, ...], Place] = {}
        self._items: dict[int, Place] = {}
        self.rest: Place | None = None  #: of the items from `prefixes` on, once it is known
        self._names: Place | None = None
        self.has_names = any("propertyNames" in part for part, _ in self.parts)
        self.looks_at_names = self.has_names or bool(self.patterns)
        self.by_member += MEMBER_STEPS * self.has_names

    def member(self, name: str) -> Place:
        """Returns the place of the value of the property `name`."""
        if name in self.members:
            found = self.members.get(name)
            if found is None:
                matched = tuple(pattern.is_valid(name) for _, pattern in self.patterns)
                found = self.members[name] = self._place_of(name, matched)
            return found
        # A device chose this name, so only the patterns that it matches are remembered.
        matched = tuple([pattern.is_valid(name) for _, pattern in self.patterns])
        found = self._others.get(matched)
        if found is None:
            if len(self._others) >= CHOSEN_MAX:
                self._others.clear()
            found = self._others[matched] = self._place_of(name, matched)
            if not self.patterns:
                self.others = found
        return found

    def _place_of(self, name: str, matched: tuple[bool, ...]) -> Place:
        return self._counter.place(self._schemas_of(name, iter(matched)))

    def _schemas_of(
        self, name: str, matched: Iterator[bool], is_named: bool = True
    ) -> Iterator[tuple[Any, int]]:
        for part, often in self.parts:
            patterns = part.get("patternProperties", {})
            below = [schema for schema in patterns.values() if next(matched)]
            if is_named and name in part.get("properties", ()):
                below.append(part["properties"][name])
            if not below and "additionalProperties" in part:
                below.append(part["additionalProperties"])
            if "unevaluatedProperties" in part:
                below.append(part["unevaluatedProperties"])
            yield from ((schema, often) for schema in below)

    def below(self) -> Iterator[Iterable[tuple[Any, int]]]:
        """Yields the roots of the places below this one: of the named properties, of a name that
        matches no pattern, one, or all of them, of the items, and of the names."""
        count = len(self.patterns)
        for name in self.members:
            matched = [pattern.is_valid(name) for _, pattern in self.patterns]
            yield self._schemas_of(name, iter(matched))
        # A name of `properties` has its own place, so any other name stands for all others.
        for index in range(count):
            yield self._schemas_of("", (n == index for n in range(count)), is_named=False)
        for all_match in (False, True):
            yield self._schemas_of("", (all_match for _ in range(count)), is_named=False)
        for index in range(self.prefixes + 1):
            yield self._schemas_of_item(index)
        if self.has_names:
            yield self._schemas_of_names()

    def item(self, index: int) -> Place:
        """Returns the place of an item. All items from `prefixes` on have the same place."""
        index = min(index, self.prefixes)
        found = self._items.get(index)
        if found is None:
            found = self._items[index] = self._counter.place(self._schemas_of_item(index))
            if index == self.prefixes:
                self.rest = found
        return found

    def _schemas_of_item(self, index: int) -> Iterator[tuple[Any, int]]:
        for part, often in self.parts:
            first = part.get("prefixItems", ())
            if index < len(first):
                yield first[index], often
            elif "items" in part:
                yield part["items"], often
            for keyword in ("contains", "unevaluatedItems"):
                if keyword in part:
                    yield part[keyword], often

    @property
    def names(self) -> Place:
        """Returns the place of the names of properties, which `propertyNames` checks."""
        if self._names is None:
            self._names = self._counter.place(self._schemas_of_names())
        return self._names

    def _schemas_of_names(self) -> Iterator[tuple[Any, int]]:
        for part, often in self.parts:
            if "propertyNames" in part:
                yield part["propertyNames"], often


class _Walk:
    """Follows one value through the places of a schema, and counts down.

    The code is a little repetitive, because it runs for each value of each changeset.
    """

    def __init__(self, counter: StepCounter, most: int):
        self.left = most
        self._seen = 0  # values and sixteenths of their characters, for `uniqueItems`

    def visit(self, place: Place, value: Any) -> None:
        kind = type(value)
        if kind is dict:
            self._visit_object(place, value)
        elif kind is list:
            self._visit_list(place, value)
        else:
            self._visit_scalar(place, value)
        if self.left < 0:
            raise TooManySteps

    def _visit_scalar(self, place: Place, value: Any) -> None:
        kind = type(value)
        steps = place.by_type[kind]
        if kind is str:
            length = len(value)
            if length > 16:
                self._seen += length >> 4
            steps += int(length * place.by_character)
        elif not place.is_plain and (kind is int or kind is float):
            steps += _further_steps(place, value)
        self.left -= steps

    def _visit_object(self, place: Place, value: dict[str, Any]) -> None:
        self.left -= place.by_type[dict] + place.by_member * len(value)
        if self.left < 0:
            raise TooManySteps
        self._seen += len(value)
        if place.looks_at_names:
            self._visit_names(place, value)
        members = place.members
        for name, item in value.items():
            below = members.get(name, place.others)
            if below is None:
                if self.left < 0:  # making places takes long
                    raise TooManySteps
                below = place.member(name)
            kind = type(item)
            if kind is dict:
                self._visit_object(below, item)
            elif kind is list:
                self._visit_list(below, item)
            else:
                self._visit_scalar(below, item)

    def _visit_names(self, place: Place, value: dict[str, Any]) -> None:
        for name in value:
            for steps, _ in place.patterns:
                self.left -= int(steps * (8 + len(name)))
            if place.has_names:
                self._visit_scalar(place.names, name)
            self._seen += len(name) >> 4
        if self.left < 0:
            raise TooManySteps

    def _visit_list(self, place: Place, value: list[Any]) -> None:
        self.left -= place.by_type[list] + len(value)
        if self.left < 0:
            raise TooManySteps
        before = self._seen
        self._seen += len(value)
        items = self._visit_prefix(place, value) if place.prefixes else value
        if items:
            self.visit_items(place.rest or place.item(place.prefixes), items)
        if place.by_unique:
            self.left -= place.by_unique * (self._seen - before)

    def _visit_prefix(self, place: Place, value: list[Any]) -> list[Any]:
        """Visits the items that have places of their own. Returns the other items."""
        first = value[: place.prefixes]
        self.left -= MEMBER_STEPS * len(first)
        for index, item in enumerate(first):
            self.visit(place.item(index), item)
        return value[place.prefixes :]

    def visit_items(self, place: Place, items: list[Any]) -> None:
        """Visits items that all have the same place. Long lists of numbers and of strings are
        usual, so these are counted together."""
        if len(items) < 4:
            self.left -= MEMBER_STEPS * len(items)
            for item in items:
                self.visit(place, item)
            return
        kinds = Counter(map(type, items))
        if kinds.keys() <= _SCALARS:
            for kind, count in kinds.items():
                self.left -= count * place.by_type[kind]
            if str in kinds:
                length = sum([len(item) for item in items if type(item) is str])
                self._seen += length >> 4
                self.left -= int(length * place.by_character)
            if not place.is_plain and (int in kinds or float in kinds):
                self._visit_numbers(place, items)
        elif len(kinds) == 1 and dict in kinds:
            for item in items:
                self._visit_object(place, item)
        else:
            self.left -= CONTAINER_STEPS * len(items)
            for item in items:
                self.visit(place, item)

    def _visit_numbers(self, place: Place, items: list[Any]) -> None:
        self.left -= len(items)
        if self.left < 0:
            raise TooManySteps
        for item in items:
            if type(item) is int or type(item) is float:
                self.left -= _further_steps(place, item)


def _further_steps(place: Place, value: float) -> int:
    kind = _kind_of(value)
    return place.large if kind == LARGE_INT else place.extreme if kind == EXTREME else 0


def _kind_of(value: float) -> int:
    if type(value) is int:
        return INT if -ORDINARY_MAX <= value <= ORDINARY_MAX else LARGE_INT
    return FLOAT if not value or ORDINARY_MIN <= abs(value) <= ORDINARY_MAX else EXTREME


_TYPES = (dict, list, str, int, float, bool, type(None))
_SCALARS = frozenset(_TYPES) - {dict, list}


class _Weights:
    """What one subschema adds to the steps of a value, without the subschemas inside it."""

    def __init__(self, part: Mapping[str, Any]):
        self.by_type = dict.fromkeys(_TYPES, 1)
        self.large, self.extreme = 0, 0
        self.by_character = 0.0
        self.by_member = len(BY_FIELD & part.keys())
        self.by_member += 4 * ("unevaluatedProperties" in part)
        self.by_unique = UNIQUE_STEPS * (part.get("uniqueItems") is True)
        self.patterns: list[tuple[float, jsonschema_rs.Validator]] = []
        for keyword, value in part.items():
            self._add(keyword, value)

    def _add(self, keyword: str, value: Any) -> None:
        if keyword in BOUNDS:
            self._add_numbers(COMPARE, value)
        elif keyword == "multipleOf":
            self._add_numbers(DIVIDE, value)
        elif keyword == "const":
            self._add_equal(value)
        elif keyword == "enum":
            for one in value:
                if type(one) is not str:  # all strings together are one lookup
                    self._add_equal(one)
            self.by_type[str] += 1
        elif keyword == "pattern":
            self.by_type[str] += 4
            self.by_character += _steps_by_character(value)
        elif keyword == "format":
            self.by_type[str] += FORMAT_STEPS
            self.by_character += CHARACTER_STEPS
        elif keyword in ("minLength", "maxLength"):
            self.by_character += CHARACTER_STEPS
        elif keyword == "required":
            self.by_type[dict] += len(value)
        elif keyword == "dependentRequired":
            self.by_type[dict] += sum(1 + len(names) for names in value.values())
        elif keyword == "dependentSchemas":
            self.by_type[dict] += len(value)
        elif keyword == "patternProperties":
            # `additionalProperties` matches the patterns again.
            self.patterns = [(2 * _steps_by_character(p), _matcher(p)) for p in value]
            self.by_member += 12 * len(value)

    def _add_numbers(self, table: Mapping[int, tuple[int, int, int, int]], bound: float) -> None:
        int_, large, float_, extreme = table[_kind_of(bound)]
        self.by_type[int] += int_
        self.by_type[float] += float_
        self.large += max(large - int_, 0)
        self.extreme += max(extreme - float_, 0)

    def _add_equal(self, value: Any) -> None:
        kind = type(value)
        if kind is int or kind is float:
            self._add_numbers(EQUAL, value)
        elif kind is dict or kind is list:
            self.by_type[kind] += _steps_of_equal(value)
        else:
            self.by_type[kind] += 1


def _steps_of_equal(value: Any) -> int:
    """Returns the steps of comparing a value with this one. The comparison ends at the first
    difference, so that only equal parts are compared in full."""
    kind = type(value)
    if kind is list:
        return 12 + sum(map(_steps_of_equal, value))
    if kind is dict:
        return 12 + sum(12 + _steps_of_equal(item) for item in value.values())
    if kind is int or kind is float:
        return (40, 240, 80, 900)[_kind_of(value)]
    return 2


def _steps_by_character(pattern: str) -> float:
    size = pattern_size(pattern)
    return CHARACTER_STEPS if size <= SMALL_PATTERN else size * PART_STEPS


def _matcher(pattern: str) -> jsonschema_rs.Validator:
    return compiled({"pattern": pattern})
