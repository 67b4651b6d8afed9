from services.inference.engine import Answer
from services.inference.python_batches import BATCH_BYTES, Batches, Item, Job, halves
from services.inference.python_frames import Body, file

WAIT_S = 5.0


def item(name: str, priority: int = 1) -> Item:
    return Item(name, Body(b"{}"), priority)


def waiting(size: int, *items: Item) -> Batches:
    batches = Batches(size, WAIT_S)
    for second, each in enumerate(items):
        batches.add(each, float(second))
    return batches


def names(groups: list[list[Job]] | list[Job]) -> list[object]:
    return [names(part) if isinstance(part, list) else "".join(i.task_id for i in part.items) for part in groups]


def taken(batches: Batches, now_s: float = 0.0, *, empty: bool = True) -> list[object]:
    return names(batches.next(now_s, empty=empty))


def test_a_full_batch_goes_at_once() -> None:
    assert taken(waiting(2, item("a"), item("b"), item("c"))) == ["ab"]


def test_a_batch_that_is_not_full_waits_for_others_as_long_as_its_oldest_may() -> None:
    batches = waiting(3, item("a"), item("b"))
    assert batches.due_at_s == WAIT_S
    assert taken(batches, WAIT_S - 0.1) == []
    assert taken(batches, WAIT_S) == ["ab"]
    assert batches.due_at_s is None


def test_a_batch_with_enough_bytes_is_full_and_the_files_of_a_body_count() -> None:
    half = file("a", "", bytes(BATCH_BYTES // 2))
    large = [Item(name, Body(b"{}", files={"file": half}), 1) for name in "abcd"]
    batches = waiting(100, *large)
    assert taken(batches, WAIT_S + 3) == ["ab"]
    assert taken(batches, WAIT_S + 3) == ["cd"]


def test_a_batch_with_enough_bytes_goes_at_once_and_only_what_waits_is_counted() -> None:
    half = file("a", "", bytes(BATCH_BYTES // 2))
    gone, *large = [Item(name, Body(b"{}", files={"file": half}), 1) for name in "xab"]
    batches = waiting(100, gone, large[0])
    batches.remove(gone)
    batches.remove(gone)
    assert taken(batches) == []
    batches.add(large[1], 0.0)
    assert taken(batches) == ["ab"]
    batches.add(large[1], 0.0)
    assert taken(batches) == []


def test_a_batch_of_one_waits_for_nobody() -> None:
    assert taken(waiting(1, item("a"))) == ["a"]


def test_the_most_urgent_goes_first_and_of_these_the_oldest() -> None:
    batches = waiting(2, item("a", 2), item("b", 1), item("c", 0), item("d", 1))
    assert [taken(batches), taken(batches)] == [["cb"], ["da"]]


def test_who_is_not_waited_for_any_more_does_not_go() -> None:
    gone, left = item("a"), item("b")
    batches = waiting(2, gone, left)
    batches.remove(gone)
    assert batches.due_at_s == WAIT_S + 1
    assert taken(batches, WAIT_S + 1) == ["b"]
    batches.remove(gone)


def test_what_runs_again_goes_before_what_waits_and_its_halves_in_order() -> None:
    batches = waiting(1, item("z"))
    batches.add_again(halves([Job([item("a"), item("b"), item("c")])], alone=False))
    assert [taken(batches), taken(batches), taken(batches), taken(batches)] == [["ab"], ["c"], ["z"], []]


def test_what_may_have_ended_a_process_waits_for_an_empty_one_and_nothing_waits_for_it() -> None:
    batches = waiting(1, item("z"))
    batches.add_again(halves([Job([item("a")]), Job([item("b")]), Job([item("c")])], alone=True))
    assert taken(batches, empty=False) == ["z"]
    assert taken(batches, empty=False) == []
    assert [taken(batches), taken(batches)] == [["a"], ["b", "c"]]


def test_what_is_over_is_not_run_again() -> None:
    over, left = item("a"), item("b")
    batches = waiting(1)
    batches.add_again([[Job([over], alone=True)], [Job([left], alone=True)]])
    over.tell(Answer(status=200, body=b"{}"))
    assert taken(batches) == ["b"]


def test_of_one_job_the_items_are_halved_and_of_several_the_jobs() -> None:
    assert names(halves([Job([item("a"), item("b"), item("c")])], alone=True)) == [["ab"], ["c"]]
    assert names(halves([Job([item("a"), item("b")]), Job([item("c")]), Job([item("d")])], alone=True)) == [
        ["ab"],
        ["c", "d"],
    ]
    assert names(halves([Job([item("a")])], alone=True)) == [["a"]]


def test_the_one_that_fails_is_found_in_as_many_runs_as_its_batch_can_be_halved() -> None:
    items = [item(str(n)) for n in range(256)]
    batches, runs = Batches(256, 0), 1
    batches.add_again(halves([Job(items)], alone=False))
    found: list[Item] = []
    while jobs := batches.next(0, empty=True):
        runs += 1
        if items[77] in jobs[0].items:
            if len(jobs[0].items) == 1:
                found += jobs[0].items
            else:
                batches.add_again(halves(jobs, alone=False))
    assert found == [items[77]]
    assert runs == 17


def test_an_item_that_is_over_is_told_nothing_more() -> None:
    one = item("a")
    one.tell(Answer(status=200, body=b"{}"))
    one.tell(Answer(status=500, body=b"{}"))
    assert one.pieces.qsize() == 1
