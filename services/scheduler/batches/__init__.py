"""Batches: files of requests, fed to the lane `batch` item by item, whatever is killed meanwhile.

Problem. A batch outlives every process that works on it: a day, a million lines, schedulers that are killed, replaced and
paused. Each of its lines must end exactly once, in exactly one line of its output, and the client may look at any time.

What there is
  - The input lies in the object store and never changes. `offset` says how much of it was fed.
  - The hash `state` has the counts, `open` each item that was fed and has not ended, the bitmap `ended` the others. All of a
    batch lies in one slot, so each step is one script: batch_feed opens items and moves the offset, batch_end ends items.
  - An item is an ordinary task of the lane batch. Its id follows from the batch, a random salt of the batch and the item's number,
    so submitting it again finds it, and nobody else computes it. Its end comes on `hr:reply:batch.<batch>`, payload included, at
    least once.
  - Lines of output are gathered into a segment, an object of its own. First it is put, then batch_end names it together with
    the items it has: a segment that no script named is an orphan, and is deleted at the end.
  - The output and error files are lists of segments. A segment that was named is filed at once, and stands in `unfiled` until
    it is; to file one twice changes nothing.

Who does it. Whoever holds the batch's lease: any scheduler takes one that lapsed. The lease is a fence (epoch and nonce, in
Redis' own time), and each script checks it, so a holder that slept through its lease writes nothing more. What it still can do is
submit tasks, which the next one finds, and put objects, which are orphans; one that it puts behind the end of the batch stays.

Invariants
  - fed = open + ended, and completed + failed + cancelled + expired = ended, after every script; total - fed was not begun.
  - A holder's memory is only a copy. After any error it is thrown away and read again, as the next holder would.
  - At most `limits.batch_window` items of a tenant are tasks at once, for each scheduler, or one for each batch that has had a place,
    if those are more: batches that stand still must not keep their tenant's others from going on. A refusal (a full backlog, a tenant's
    allowance, a full Redis, a deadline that cannot be met yet) means to wait, and what has ended is gathered on meanwhile; so do an
    object store and a Redis out of reach. Only the deadline of the batch ends the waiting, by Redis' clock: those of
    schedulers may differ, and jump.
  - A tenant takes no more of a scheduler's places than it leaves free, and a batch in which nothing moves gives up its place to one
    that waits: its tasks wait on, count against its tenant's window, and it is gathered when it has a place again. So does one that
    moves, after a turn, to a tenant that has fewer places by more than one. What is validated or tidied gives up nothing: it would
    be begun anew each time, and might never be done.
  - What an item's task has made stays until its line is written, however long its batch waits for a place or for a scheduler: the
    task is submitted with a time (`kept_until_ms`, a file's life behind the window), and may go soon after the line is there. An
    answer that is gone all the same is made anew, as long as there is time.
  - A batch stays in the index, and its hash does not expire, until its webhook was told of its end.

Rejected: one task for the whole batch (its end is all or nothing), counting replies as they come (they may come twice),
appending to one output object (object stores do not), a reply that carries the item's number (anybody may write to a reply stream;
an id that is not open is nobody's), validating while feeding (a duplicate custom_id is known only to who has read all before it:
a first pass marks them, so that a successor need not read the file again), gathering without a place (it needs the lease, and
memory for answers, which is what makes places scarce), tasks that never expire before they are gathered (those of a batch whose
hash was lost would stay for ever).
"""
