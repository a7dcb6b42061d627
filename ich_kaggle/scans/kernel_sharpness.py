"""How sharp a CT reconstruction kernel is, by the names that vendors give it in ConvolutionKernel (0018,1210).

Brain is read in smooth kernels; those for bone and lung raise the noise that blood hides in. Siemens numbers its
kernels by sharpness (H31s, Hr40, B70f; for higher sharpness B50s, B60s, B70s: SOMATOM Sensation, operating
instructions); of Toshiba's and Canon's, FC30 to 39, 50 to 59 and 80 to 89 are for bone and lung; GE's and Philips'
have names.
"""

import re

SOFT, UNKNOWN, SHARP = range(3)
WORDS = {
    SOFT: {"STANDARD", "STND", "STD", "SOFT", "BRAIN", "SMOOTH", "A", "B", "C", "UA", "UB", "UC"},
    SHARP: {"BONE", "BONEPLUS", "BONE+", "EDGE", "LUNG", "ULTRA", "SHARP", "D", "E", "L", "YD", "YE"},
}
SIEMENS = re.compile(r"[A-Z][A-Z]?(\d\d)[A-Z]?\b")  # H31s, Hr40d, Br59
SHARP_FROM = 50
CANON = re.compile(r"FC(\d)\d")
SHARP_TENS = "358"


def sharpness(kernel: str) -> int:
    """Return SOFT, UNKNOWN or SHARP of the kernel's name, which may have a second part: `Hr40 3`."""
    words = set(re.split(r"[\s\\_/-]+", kernel.upper()))
    if any(word.startswith("BONE") for word in words) or words & WORDS[SHARP]:
        return SHARP
    if found := CANON.search(kernel.upper()):
        return SHARP if found[1] in SHARP_TENS else SOFT
    if found := SIEMENS.match(kernel.upper()):
        return SHARP if int(found[1]) >= SHARP_FROM else SOFT
    return SOFT if words & WORDS[SOFT] else UNKNOWN
