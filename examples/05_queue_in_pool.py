"""A queue as an argument of a task: the tasks report while they work."""

from __future__ import annotations

from mpkit import BoundedQueue, TaskPool


def count_words(text: str, reports: BoundedQueue[str]) -> int:
    words = text.split()
    reports.put(f"{len(words)} words, beginning with {words[0]!r}")
    return len(words)


if __name__ == "__main__":
    texts = ["one two three", "four five", "six seven eight nine"]
    with TaskPool(processes=2) as pool, BoundedQueue[str](maxsize=10) as reports:
        handles = [pool.submit(count_words, text, reports) for text in texts]
        for line in sorted(reports.get(timeout=30) for _ in texts):
            print(line)
        print("in all:", sum(handle.result() for handle in handles))
