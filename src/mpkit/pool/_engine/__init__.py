"""The parent's side of a pool: it decides which worker gets which task, and looks after the workers.

The modules:

- the pool as a whole: ``engine`` (puts the parts together, and ends the pool), ``states`` (of a pool),
  ``options`` (arguments, checked), ``statistics`` and ``progress`` (what is shown of a pool);
- tasks: ``submission`` (submits and cancels), ``packing`` (the bytes of a task), ``ledger`` (the pure state
  machine of all tasks), ``function_table`` and ``functions`` (what tasks call, and how long it takes),
  ``seen_shared`` (which shared objects a task needs), ``blame`` (what cannot be pickled), ``initializer``
  (the bytes of the pool's initializer);
- tasks on their way: ``dispatcher`` (everything that happens under the pool's one lock) and its parts:
  ``placement`` (decides where tasks go), ``balancer`` (sends tasks, and takes them back), ``receiver``
  (what workers hand in), ``recovery`` (repairs what an exception has left half done);
- threads that wait: ``room`` (for room to submit), ``lead`` (for outcomes), ``collector`` (the thread that
  fetches outcomes while no thread waits for them), ``caller`` (the thread that calls callbacks),
  ``settlements`` (outcomes on their way to those who wait), ``threads`` (how the pool's own threads are made
  and kept going);
- workers: ``crew`` (starts them; ``server``, ``fork_warning``), ``start_ups`` (when to give up starting
  them), ``lane`` (one worker, as the parent sees it), ``roster`` (all workers that may get tasks),
  ``leavers`` (workers that leave), ``insight`` and ``stacks`` (what workers are doing);
- what goes wrong: ``supervisor`` (the thread that looks after the workers), ``limits`` (stops tasks),
  ``programs`` (processes that stopped tasks have started), ``deaths`` (what follows from the death of a
  worker), ``losses`` (the same for its tasks), ``remains`` (the same for its shared memory).

Some words have a fixed meaning here:

- A task is *sent* when its record is put into the inbox of a worker; it has *begun* when the worker has taken
  the record out. It *ends* exactly once, with an *outcome* (a value or an error).
- The *sink* of a task (a handle, or the receiving part of a map) is *told* its outcome. *Settlements* are
  outcomes that have been taken under the pool's lock, and are told when it has been released.
- A *lane* is one worker as the parent sees it, with its *channel*: inbox, outbox and status row.
- A *bell* is a semaphore that a thread of the parent sleeps at. Its words on the *board*, a page of memory
  that the pool shares with its workers, say whether and for what a worker has to ring it.
- A *stop* is the steps that end a running task: interrupt, terminate, kill.
- To *look after* something is to check its state, and to do what is due.
"""
