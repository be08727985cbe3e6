"""What a kind of crash means, and what usually helps: sentences for people who have not run the fuzzer themselves."""

from typing import NamedTuple


class Explanation(NamedTuple):
    """What is said of a kind of crash."""

    what: str
    """What has happened, in one sentence."""
    how: str = "Run the input again, and follow the stack from the frame that is named first."
    """What helps to find the cause, in one sentence."""


_OUT_OF_BOUNDS = "Look for a length or an index that the input sets and nobody checks."
_LIFETIME = "See where the memory was given back: the report has the stack of that, too."
_BAD_POINTER = "See whether the address is near zero, which means a null pointer, or depends on the input."
_STATED = "Either the input must be refused earlier, or what was asserted does not always hold."

_KNOWN = {
    "heap-buffer-overflow": Explanation("The target read or wrote beyond an allocation.", _OUT_OF_BOUNDS),
    "stack-buffer-overflow": Explanation("The target read or wrote beyond a variable on the stack.", _OUT_OF_BOUNDS),
    "global-buffer-overflow": Explanation("The target read or wrote beyond a global variable.", _OUT_OF_BOUNDS),
    "index-out-of-bounds": Explanation("An array was accessed with an index that it does not have.", _OUT_OF_BOUNDS),
    "heap-use-after-free": Explanation("The target used memory that had been given back.", _LIFETIME),
    "stack-use-after-return": Explanation("The target used a variable of a function that had returned.", _LIFETIME),
    "stack-use-after-scope": Explanation("The target used a variable outside of its scope.", _LIFETIME),
    "double-free": Explanation("The target gave the same memory back twice.", _LIFETIME),
    "SEGV": Explanation("The target accessed an address that nothing is mapped to.", _BAD_POINTER),
    "page fault": Explanation("The target accessed an address that nothing is mapped to.", _BAD_POINTER),
    "null-dereference": Explanation("The target used a null pointer.", "See which call can return none."),
    "stack-overflow": Explanation(
        "The stack ran full.", "Bound the depth to which an input can nest, or the recursion."
    ),
    "memory leak": Explanation("Memory was never given back.", "The stack is that of the allocation."),
    "out-of-memory": Explanation("The target took more memory than it may.", "Bound what an input can ask for."),
    "allocation-size-too-big": Explanation("The target asked for an absurd amount of memory.", _OUT_OF_BOUNDS),
    "timeout": Explanation(
        "The target did not come to an end with one input in time.", "Look for loops whose length the input sets."
    ),
    "use-of-uninitialized-value": Explanation("The target decided by memory that nobody had written to."),
    "assertion failure": Explanation("The target ended itself, because an assertion did not hold.", _STATED),
    "check failure": Explanation("The target ended itself, because a check failed.", _STATED),
    "panic": Explanation("The target panicked.", _STATED),
    "uncaught exception": Explanation("Nobody caught an exception.", "Catch it, or refuse the input earlier."),
    "deadly signal": Explanation("A signal ended the target."),
}


def explanation(kind: str) -> Explanation:
    """Return what is said of a kind of crash; of one that is not known well, only that the target was ended by it."""
    return _KNOWN.get(kind) or Explanation(f"A fuzzer found an input that ends its target: {kind}.")
