"""What is taken on trust: shown in every verdict, explained in docs/assumptions.md."""

ASSUMPTIONS = (
    "A1 arithmetic: float operations of Python and NumPy are IEEE-754 binary64, rounded to nearest",
    "A2 matrix products: NumPy sums the products of each entry in some order, fused or not, in binary64, or in "
    "binary32 where products were found to be",
    "A3 parsing: protobuf and onnx read the bytes of the file as the runtime does",
    "A4 semantics: standard operators do what the ONNX specification of their version says, and no other operator "
    "library has a kernel under the name of a function that the file defines",
    "A5 kernels: the operator library computes GroupSort, Householder and LinearSpline as specified (its digest is "
    "recorded)",
    "A6 rounding (deployed guarantee only): the runtime's sums are conventional, in any order, fused or not, in the "
    "precision stated; no Winograd, FFT, TF32 or fast-math kernels",
)

#: Words of earlier versions, and today's: whoever checks a certificate assumes what the check's own verdict lists.
EARLIER = {
    "A2 matrix products: NumPy sums the products of each entry in some order, fused or not, in binary64": (
        ASSUMPTIONS[1]
    ),
}


def are_listed(found: object) -> bool:
    """Whether a certificate's list is today's, in these words or in those of an earlier version."""
    if not isinstance(found, list):
        return False
    return [EARLIER.get(text, text) if isinstance(text, str) else text for text in found] == list(ASSUMPTIONS)
