"""The parent's side of a pool: what decides who does what, and looks after the workers.

- the whole: ``engine`` (puts the rest together, and ends it; ``states``), ``options`` (arguments, checked),
  ``statistics`` and ``progress`` (what is shown of it);
- tasks: ``packing`` (one as it is sent), ``ledger`` (the pure state machine), ``function_table`` and
  ``functions`` (what they call, and how long it takes), ``seen_shared`` (which shared objects they need),
  ``blame`` (what cannot be pickled), ``initializer`` (the initializer as bytes);
- on their way: ``dispatcher`` (who gets which task), ``room`` (who waits to submit), ``lead`` (who waits for
  outcomes) and ``collector`` (who fetches them where nobody waits), ``caller`` (who calls callbacks);
- the workers: ``crew`` (starting and replacing them; ``server``, ``fork_warning``), ``lane`` (one of them),
  ``leavers`` (those that leave, by themselves or at the end), ``insight`` and ``stacks`` (what they are
  doing);
- what goes wrong: ``supervisor`` (the thread that looks after the workers), ``limits`` (tasks that must not
  go on), ``programs`` (what those have started), ``deaths``, ``losses`` and ``remains`` (what a death means,
  for tasks, and in shared memory), ``reports`` (what goes wrong in a thread of the pool).
"""
