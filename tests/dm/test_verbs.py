"""The table of verbs and everybody who speaks them: signatures, what is passed on, what goes through JSON."""

import inspect
import json
from typing import Any

import pytest

from kernel_backend.backend import KernelBackend
from kernel_backend.calls import DeviceMapperCalls
from kernel_backend.device_mapper import KernelDeviceMapper
from kernel_backend.differential import VERB_OPERATIONS
from tests.dm.fake_backend import FakeBackend
from thinfs.dm.backend import Backend, DeviceInfo, OpenDevice, TargetVersion
from thinfs.dm.forwarding import ForwardingBackend
from thinfs.dm.verbs import DEVICE, INFO, INFOS, NOTHING, NUMBERS, REQUIRED, TARGETS, TEXT, VERBS, Parameter
from thinfs.server.client import ControlClient
from thinfs.userspace.devices import DeviceMapper

NO_DEFAULT = inspect.Parameter.empty
ASKED = DeviceInfo("p", "u", 254, 3, 1, 7, 1, False, True, True, False, False)


def arguments_of(owner: type, verb: str) -> list[tuple[str, Any, bool]]:
    """(name, default or REQUIRED, whether by keyword only) of a method's arguments."""
    _, *parameters = inspect.signature(getattr(owner, verb)).parameters.values()
    return [
        (one.name, REQUIRED if one.default is NO_DEFAULT else one.default, one.kind is inspect.Parameter.KEYWORD_ONLY)
        for one in parameters
    ]


def in_table(verb: str) -> list[Parameter]:
    return list(VERBS[verb].parameters)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "owner",
    [Backend, ForwardingBackend, ControlClient, KernelBackend, DeviceMapperCalls, DeviceMapper, FakeBackend],
    ids=lambda owner: owner.__name__,
)
def test_a_verb_has_the_same_arguments_everywhere(owner: type, verb: str) -> None:
    if owner is DeviceMapperCalls and verb == "open":
        return  # of any block device, by its path
    expected = [(one.name, one.default, one.default is not REQUIRED) for one in in_table(verb)]
    assert arguments_of(owner, verb) == expected


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "open"])
def test_the_kernel_s_end_takes_the_arguments_in_the_table_s_order(verb: str) -> None:
    assert arguments_of(KernelDeviceMapper, verb) == [(one.name, one.default, False) for one in in_table(verb)]


def test_the_seam_has_these_verbs_and_no_others() -> None:
    assert {name for name in vars(Backend) if not name.startswith("_")} == set(VERBS)


class Recorder(ForwardingBackend):
    def __init__(self) -> None:
        self.passed: list[tuple[str, dict[str, Any]]] = []

    async def _pass_on(self, verb: str, /, **arguments: Any) -> Any:
        self.passed.append((verb, arguments))

    async def open(self, name: str) -> OpenDevice:
        raise NotImplementedError


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "open"])
async def test_a_verb_is_passed_on_with_the_values_it_was_given(verb: str) -> None:
    recorder = Recorder()
    given = {one.name: f"value of {one.name}" for one in in_table(verb)}
    await getattr(recorder, verb)(**given)
    assert recorder.passed == [(verb, given)]


class Sent(DeviceMapperCalls):
    """What goes over a transport, which answers nothing."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self._call = lambda *words: self.sent.append(words)


@pytest.mark.parametrize("verb", [name for name, one in VERBS.items() if one.answer is NOTHING])
def test_a_kernel_s_call_sends_every_argument_in_order(verb: str) -> None:
    sent = Sent()
    getattr(sent, verb)(**{one.name: f"value of {one.name}" for one in in_table(verb)})
    assert sent.sent == [(verb, *(f"value of {one.name}" for one in in_table(verb)))]


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (NOTHING, None),
        (TEXT, "0 128 thin 0 -"),
        (INFO, ASKED),
        (INFOS, [ASKED, ASKED]),
        (NUMBERS, [(7, 0), (254, 1)]),
        (TARGETS, [TargetVersion("thin", (1, 22, 0))]),
    ],
)
def test_an_answer_comes_out_of_json_as_it_went_in(answer: Any, value: Any) -> None:
    assert answer.from_json(json.loads(json.dumps(answer.to_json(value)))) == value


def test_every_verb_s_answer_is_one_of_those() -> None:
    assert {id(verb.answer) for verb in VERBS.values()} == {
        id(one) for one in (NOTHING, TEXT, INFO, INFOS, NUMBERS, TARGETS, DEVICE)
    }


def test_the_operations_of_a_differential_test_are_the_verbs_about_one_device() -> None:
    assert set(VERBS) - set(VERB_OPERATIONS) == {"wait", "list", "targets", "open"}
    assert VERB_OPERATIONS["suspend"].by_name(["t", False, False]) == {"name": "t", "noflush": False, "lockfs": False}
    with pytest.raises(TypeError, match="3 arguments, at most 2"):
        VERB_OPERATIONS["remove"].by_name(["t", True, 1])
