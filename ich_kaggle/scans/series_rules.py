"""Rules for the texts of a header: the kernel of a series, its contrast medium, and its part of the body.

Texts are compared in capitals without accents. Words were collected from the values of public CT collections (The
Cancer Imaging Archive, CQ500, RSNA) and vendors' manuals, named beside them or in the tests.
"""

import re
import unicodedata
from collections.abc import Mapping


def plain(text: str) -> str:
    """Return `text` in capitals, without accents; what stands for a space is one."""
    parts = unicodedata.normalize("NFKD", re.sub("[_^]", " ", text.upper()))
    return unicodedata.normalize("NFC", "".join(c for c in parts if not unicodedata.combining(c)))


# Reconstruction kernels by the names that vendors give them in ConvolutionKernel (0018,1210). Brain is read in smooth
# ones; those for bone and lung raise the noise that blood hides in. The first rule that matches decides.
SOFT, UNKNOWN, SHARP = range(3)
KERNELS = (
    # GE, Philips, United Imaging, Neusoft, Samsung: words, which may have U, V or ULTRA before them.
    (SHARP, r"(SHARP|BONE|EDGE|\b(U|V|ULTRA)?LUNG|INNER ?EAR|TEMPORAL)(PLUS|\+)?\d*(?![A-Z])"),
    (SHARP, r"\b(BONE|ULTRA|HRES|HIGH ?RES)"),
    # Toshiba and Canon: FC and the number of a filter; the tens 30, 50 and 80 are for bone and lung.
    (SHARP, r"\bFC[358]\d"),
    (SOFT, r"\bFC\d\d"),
    (SOFT, r"STANDARD|STND|\bSTD|SOFT|SMOOTH|BRAIN|CEREB|\bHEAD\b"),
    # Siemens: H31s, Hr40, J37f: a letter for the body part, one for the kind, and the sharpness.
    (SHARP, r"\b[A-Z]{1,2}[5-9]\d[A-Z]?\b"),
    (SOFT, r"\b[A-Z]{1,2}[1-4]\d[A-Z]?\b"),
    # Philips: letters, U before those for the brain and Y or E for those for bone and lung.
    (SHARP, r"\b(D|E|L|Y[A-E]|E[A-C]|LA|LB)\b"),
    (SOFT, r"\b(A|B|C|U[A-C])\b"),
)


def sharpness(kernel: str, description: str = "") -> int:
    """Return SOFT, UNKNOWN or SHARP for the name of a kernel, which may have a second part: `Hr40 3`.

    Of a kernel without a known name, the `description` of the series tells whether it is for bone or lung.
    """
    name = re.sub(r"[\s\\_/-]+", " ", plain(kernel))
    found = next((sort for sort, pattern in KERNELS if re.search(pattern, name)), UNKNOWN)
    is_sharp = found == UNKNOWN and re.search(KERNELS[0][1], plain(description))
    return SHARP if is_sharp else found


# Contrast medium in the tag of its agent, or in a description. What says that there is none is removed first.
WITHOUT = re.compile(
    r"\bW( ?/ ?)?(O|ITHOUT)\b( ?I\.?V\.?)?( ?CON\w*| ?KM\b)?|"
    r"\bNON?[- ]?(IV )?(CON|ENH)\w*|\bUN ?ENHANCED|\b(NECT|NCCT|NCECT|NCHCT|PLAIN|BLANCO|BASALE?|DIRETTA|SIMPLE)\b|"
    r"\bNATI[VF]\w*|\bPRE[- ]?(CON\w*|INJ\w*|IV\b|KM\b)|\bS ?/ ?(C\b|IV\b|MDC\b|CON\w*)|\b[CI]-(?!\w)|"
    r"\b(OHNE|O\.?|SANS|SIN|SENZA|SEM|BEZ|UTAN|UDEN|ZONDER) ?(KM|CON\w*|KONTR\w*|INJ\w*|IV|PDC|PRODUIT\w*|MDC)\b|"
    r"БЕЗ КОНТР\w*|БЕЗ КУ\b|НАТИВ\w*|平扫|平掃|単純|비조영|조영전"
)
CONTRAST = re.compile(
    r"CONTRAST|KONTRAST|КОНТРАСТ|\bC ?\+|\+ ?C\b|\b[IJ] ?\+|\bIV ?\+|\+ ?IV\b|\b(KM|MDC|PDC)\b|"
    r"\bWW/?O\b|\bW(ITH|/| /)? ?CON|\bW(ITH|/)? ?IV\b|\bW/?$|\bW/? ?(AND|&)|ENHANCED|\bCE[- ]?CT|"
    r"POST[- ]?(IV|INJ|KM|CON)|INJECT|\bCT[- ]?[AV]\b|\bANGIO|\b(ARTERI|VEN)(AL|OUS|OSA|OGRA|EUX|OES)|\bCAROT|"
    r"\bCOW\b|WILLIS|\bDSA\b|DELAYED|TARDI[FV]|SPATPHASE|\bCTP\b|PERF(US|UZ|(?![A-Z]))|ПЕРФУЗ|АНГИО|BOLUS|"
    r"(\b|\d)(CC|ML) ?/ ?S|\bTRACK|SMART ?PREP|MONITORING|\b(4D|DYN(AMIC)?|CBF|CBV|MTT|TTP|TMAX)\b|造影|增强|增強|"
    r"灌注|조영|OMNIPAQUE|ULTRAVIST|ISOVUE|VISIPAQUE|OPTIRAY|XENETIX|IOMER|IOPA[MQ]|IOHEX|IODIX|IOVER|IOPRO|IOBIT|IODIN|"
    r"ACCUPAQUE|IMERON|SOLUTRAST"
)
NO_AGENT = re.compile(r"\W*(NO|NON|NONE|NEIN|KEIN\w*|NIL|NULL|N ?/? ?A|OFF|FALSE|0|UNKNOWN|NIENTE|NADA|AUCUN)?\W*")
DESCRIPTIONS = ("SeriesDescription", "ProtocolName", "StudyDescription")  # the nearest to the series first


def contrast(agent: str, texts: Mapping[str, str]) -> str:
    """Return the reason why a series may show contrast medium, empty if nothing says so.

    `agent` is its ContrastBolusAgent, `texts` are its DESCRIPTIONS and then its ImageType. The first of them that tells
    of contrast medium, or that there is none, decides: ImageType adds a reason where the descriptions say nothing.
    """
    if not NO_AGENT.fullmatch(plain(agent)) and WITHOUT.sub("", plain(agent)).strip():
        return f"ContrastBolusAgent is {agent}"
    for keyword, text in texts.items():
        rest = WITHOUT.sub(" ", plain(text)).strip()
        if CONTRAST.search(rest):
            return f"{keyword} is {text}"
        if rest != plain(text).strip():
            return ""
    return ""


# Parts of the body in BodyPartExamined (0018,0015) and in descriptions, in the languages of large CT-using countries.
HEAD = re.compile(
    r"HEAD|BRAIN|SKULL|CRANI|CEREB|NEURO|ENCEPH|ENCEF|INTRACRAN|KOPF|SCH(A|AE|.)?DEL|GEHIRN|\bTETE|CRANE|CERVEAU|CABEZA|"
    r"CABECA|CRANEO|\bTESTA\b|CERVELLO|HOOFD|SCHEDEL|HERSEN|HJERNE|HJARN|HUVUD|\bHODE|HOVED|\bPAA\b|AIVO|G[LŁ]OW|CZASZ|"
    r"MOZG|HLAV|MOZEK|LEBK|KOPONYA|\bFEJ|\bAGY|BEYIN|\bKAFA|GLAVA|ГОЛОВ|МОЗГ|ЧЕРЕП|ΕΓΚΕΦ|ΚΕΦΑΛ|ΚΡΑΝ|"
    r"头|頭|脑|腦|脳|颅|顱|머리|두부|뇌|ראש|מוח|راس|رأس|دماغ|مخ|\bCCT\b|\bCTH\b|\bNCHCT\b"
)
ELSEWHERE = re.compile(
    r"CHEST|THORA|\bLUNG|PULMO|ABD|PELVI|BECKEN|CARDIAC|HEART|CORONAR|HERZ|LIVER|LEBER|HEPAT|KIDNEY|RENAL|\bNIERE|COLON|"
    r"SPINE|SPINAL|CSPINE|LSPINE|TSPINE|WIRBEL|\bWS\b|\b[BHL]WS\b|RACHIS|COLUMNA|COLONNA|COLUNA|\bNECK\b|\bHALS|\bCOU\b|"
    r"CUELLO|COLLO|CERVICAL|LUMBAR|SACR|SHOULDER|SCHULTER|EPAULE|HOMBRO|ELBOW|WRIST|HAND\b|FINGER|\bHIP\b|HUFTE|HANCHE|"
    r"CADERA|\bANCA\b|KNEE|KNIE|GENOU|RODILLA|GINOCCHIO|ANKLE|FOOT|\bFUSS|\bPIED|\bPIE\b|PIEDE|\bLEG\b|\bARM\b|FEMUR|"
    r"TIBIA|HUMERUS|EXTREMIT|\bTORSO|\bTRUNK|PECHO|TORAX|PETTO|BAUCH|VENTRE|ADDOME|PROSTAT|BREAST|BLADDER|\bUTER|\bOVAR|"
    r"\bSINUS|\bNNH\b|FACIAL|\bFACE\b|ORBIT|MANDIB|MAXILL|\bDENTA|\bIAC|PANCRE|AORTA|\bTAP\b|\bCAP\b|\bKUB\b|胸|肺|腹|骨盆|骨盤|脊|颈椎|頚椎|腰|膝|"
    r"ГРУД|БРЮШ|ЛЕГК|ПОЗВОН|ТАЗ|가슴|흉부|복부"
)


def body_part(part: str, texts: Mapping[str, str]) -> tuple[bool, str]:
    """Return whether a series is known to be of a head, and the reason why it is not one, empty if it may be.

    `part` is its BodyPartExamined, which decides where it names a part of the body; otherwise `texts`, the nearest to
    the series first, unless they name both the head and another part.
    """
    for keyword, text in {"BodyPartExamined": part, **texts}.items():
        is_head, is_other = HEAD.search(plain(text)), ELSEWHERE.search(plain(text))
        if is_head and (not is_other or keyword == "BodyPartExamined"):
            return True, ""
        if is_other and not is_head:
            return False, f"{keyword} is {text}: not a head"
    return False, ""


# Values of ImageType (0008,0008) whose pixels are no slice of the head in HU, though stored as CT: those of scanners,
# of multi-energy CT (PS3.3 C.8.2.1.1.1), and of calculations with several images (C.8.16.1.4).
NOT_SLICES = re.compile(
    r"LOCALIZER|SCREEN|\bMIP\b|MINIP|VRT|VOLREN|\bSSD\b|CBF|CBV|\bMTT\b|\bTTP\b|TMAX|PERFUSION|\bCOLOR|"
    r"\bMAT_(SPECIFIC|FRACTIONAL|MODIFIED|VALUE_BASED)|EFF_ATOMIC_NUM|ELECTRON_DENSITY|"
    r"SUBTRACT\w*|\b(DIVISION|MASKED|MAXIMUM|MINIMUM|MULTIPLICATION|STD_DEVIATION|T_TEST|Z_SCORE)\b"
)
