"""The parent's side of a pool: what decides who does what, and looks after the workers.

- the whole: ``engine`` (puts the rest together, and ends it; ``states``), ``options`` (arguments, checked),
  ``statistics`` and ``progress`` (what is shown of it);
- tasks: ``submission`` (submitted and cancelled), ``packing`` (one as it is sent), ``ledger`` (the pure state
  machine), ``function_table`` and ``functions`` (what they call, and how long it takes), ``seen_shared``
  (which shared objects they need), ``blame`` (what cannot be pickled), ``initializer`` (it, as bytes);
- on their way: ``dispatcher`` (all that happens under the pool's one lock) and its parts: ``placement`` (who
  gets how many, who gives some away), ``balancer`` (sends and takes back), ``inbox`` (what a worker has not
  begun), ``receiver`` (what comes back), ``recovery`` (what an exception has left half done);
- who waits: ``room`` (to submit), ``lead`` (for outcomes) and ``collector`` (fetches them where nobody does),
  ``caller`` (calls callbacks), ``settlements`` (what they are told);
- the workers: ``crew`` (starting them; ``server``, ``fork_warning``) and ``start_ups`` (when to give up),
  ``lane`` (one of them), ``roster`` (all of them, as the dispatcher knows them), ``leavers`` (those that
  leave, by themselves or at the end), ``insight`` and ``stacks`` (what they are doing);
- what goes wrong: ``supervisor`` (the thread that looks after the workers), ``limits`` (tasks that must not
  go on), ``programs`` (what those have started), ``deaths``, ``losses`` and ``remains`` (what a death means,
  for tasks, and in shared memory), ``reports`` (what goes wrong in a thread of the pool).
"""
