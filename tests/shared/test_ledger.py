"""The bookkeeping of places against a store that counts on its own, whatever happens in between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.shared.ledger import Ledger, field_of


class Model:
    """What users hold in truth, and a store that knows only what it is told or gives itself."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.held: list[str] = []
        self.store: dict[str, int] = {}

    def do(self, step: str, field: str) -> None:
        if step == "alone":
            self.held.append(field)
            self.ledger.hold(field)
        elif step == "granted":
            self.held.append(field)
            self.ledger.granted(field)
            self.store[field] = self.store.get(field, 0) + 1
        elif step == "back":
            if field in self.held:
                self.held.remove(field)
            self.ledger.give_back(field)  # one that is not held is of a former life, and changes nothing
        elif step == "tell":
            for told, change in self.ledger.changes():
                self.store[told] = self.store.get(told, 0) + change
        elif step == "join":
            self.store = self.ledger.all()

    def agrees(self) -> bool:
        """Whether the store knows what is held."""
        return {field: count for field, count in self.store.items() if count} == {
            field: self.held.count(field) for field in self.held
        }


STEPS = st.tuples(st.sampled_from(["alone", "granted", "back", "tell", "join"]), st.sampled_from("ab"))


@given(st.lists(STEPS, max_size=60))
def test_the_store_learns_what_is_held(steps: list[tuple[str, str]]) -> None:
    """After whatever was taken, granted, given back, told and joined anew, one telling makes the counts agree."""
    model = Model()
    for step, field in steps:
        model.do(step, field)
    model.do("tell", "")
    assert model.agrees()
    assert model.ledger.changes() == []


@given(st.lists(STEPS, max_size=60))
def test_nothing_is_left_of_who_has_gone(steps: list[tuple[str, str]]) -> None:
    """When all is given back, the ledger holds nothing and the store is told so."""
    model = Model()
    for step, field in steps:
        model.do(step, field)
    for field in list(model.held):
        model.do("back", field)
    model.do("tell", "")
    assert (model.ledger.held, model.ledger._told) == ({}, {})
    assert not any(model.store.values())


def test_fields_are_told_apart() -> None:
    """Route and user can't be mistaken for another pair, and any text is ASCII there."""
    names = ["a", "a b", 'a", "b', "\ud800", "é", ""]
    fields = {field_of(route, user) for route in names for user in names}
    assert len(fields) == len(names) ** 2
    assert all(field.isascii() for field in fields)
