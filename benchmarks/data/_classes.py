"""Names of the classes of every data set, in the order of their numbers."""

DIGITS = tuple("0123456789")
GARMENTS = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
TREC_COARSE = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
TREC_FINE = tuple(
    f"{coarse}:{fine}"
    for coarse, names in (
        ("ABBR", "abb exp"),
        ("DESC", "def desc manner reason"),
        (
            "ENTY",
            "animal body color cremat currency dismed event food instru lang letter "
            "other plant product religion sport substance symbol techmeth termeq veh "
            "word",
        ),
        ("HUM", "desc gr ind title"),
        ("LOC", "city country mount other state"),
        (
            "NUM",
            "code count date dist money ord other perc period speed temp volsize "
            "weight",
        ),
    )
    for fine in names.split()
)
SPAM = ("ham", "spam")
SENTIMENT = ("negative", "positive")
DOMAINS = {
    "movie": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "tweets": "tweets",
    "nyt": "nytEditorialSnippets",
}
TOPICS = (
    "artifact",
    "person",
    "plant",
    "animal",
    "act",
    "communication",
    "state",
    "location",
    "substance",
    "food",
)
# WordNet's lexicographer files in the order of their numbers (lexnames(5WN)).
NOUNS = (
    "Tops act animal artifact attribute body cognition communication event feeling "
    "food group location motive object person phenomenon plant possession process "
    "quantity relation shape state substance time"
).split()
VERBS = (
    "body change cognition communication competition consumption contact creation "
    "emotion motion perception possession social stative weather"
).split()
FILES = (
    "adj.all",
    "adj.pert",
    "adv.all",
    *(f"noun.{name}" for name in NOUNS),
    *(f"verb.{name}" for name in VERBS),
    "adj.ppl",
)
