"""The text that the sample checkpoint learns from: small stories, sums, facts and chats.

Everything is generated here, in our own words, from the seed alone; nothing is downloaded. The
module owns the words, the mix and the split into training and held-out text. It knows nothing
about tokens or models: a document is plain text or a list of chat messages.

Templates use two marks: `[a|b|c]` is a choice, possibly nested, and `{slot}` is a value.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

BEGIN, END = "<|begin|>", "<|end|>"
IM_START, IM_END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"

TRAIN_SEED = 1
HELD_OUT_SEED = 1_000_003
HELD_OUT_SHARE = 40  # one text in so many, picked by its checksum, is never trained on
STORY_WORDS = (80, 160)


@dataclass(frozen=True)
class Message:
    """One chat message; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Document:
    """Plain text, or a chat when `messages` is not empty."""

    text: str = ""
    messages: tuple[Message, ...] = ()

    @property
    def rendered(self) -> str:
        """The document as the model reads it, after the begin token and up to the end token.

        The begin token itself is left out because the tokenizer adds it.
        """
        if not self.messages:
            return self.text + END
        turns = (f"{IM_START}{m.role}\n{m.content}{IM_END}\n" for m in self.messages)
        return "".join(turns) + END

    @property
    def is_held_out(self) -> bool:
        """Whether the document belongs to the held-out side; a matter of its text alone."""
        return zlib.crc32(self.rendered.encode()) % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Story:
    """A finished story and the values that fill it."""

    text: str
    slots: Mapping[str, str] = field(default_factory=dict)


def documents(seed: int, count: int) -> Iterator[Document]:
    """Yield `count` training documents; the same seed gives the same documents.

    No document is ever one that `held_out` yields, whatever the seeds and counts.
    """
    return _take(seed, count, held_out=False)


def held_out(count: int, seed: int = HELD_OUT_SEED) -> Iterator[Document]:
    """Yield `count` different documents that `documents` never yields."""
    return _take(seed, count, held_out=True)


def held_out_documents(count: int) -> list[str]:
    """Held-out documents as rendered strings, for measuring perplexity.

    Each ends with the end token and lacks the begin token: encode it with special tokens added.
    """
    return [document.rendered for document in held_out(count)]


def _take(seed: int, count: int, *, held_out: bool) -> Iterator[Document]:
    rng = random.Random(seed)
    seen: set[str] = set()
    while count > 0:
        document = make_document(rng)
        if document.is_held_out != held_out or (held_out and document.rendered in seen):
            continue
        if held_out:
            seen.add(document.rendered)
        count -= 1
        yield document


# --- templates ---------------------------------------------------------------------------------

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])(?!one\b|uni|use|Euro)")
_SENTENCE = re.compile(r"(^|[.!?] |\.\" |[.!?]\n\n|[.!?]\"\n\n)([\"]?)([a-z])")


def expand(template: str, rng: random.Random, slots: Mapping[str, str] | None = None) -> str:
    """Fill a template: resolve choices and slots, then mend articles, spaces and capitals."""
    paragraphs = re.split(r"\n\s*\n", template)
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    while True:
        step = _CHOICE.sub(lambda m: rng.choice(m[1].split("|")), text)
        step = _SLOT.sub(lambda m: (slots or {})[m[1]], step)
        if step == text:
            break
        text = step
    text = re.sub(r" *\n\n *", "\n\n", re.sub(r" {2,}", " ", text)).strip()
    text = _ARTICLE.sub(r"\1n ", text)
    return _SENTENCE.sub(lambda m: m[1] + m[2] + m[3].upper(), text)


def capital(text: str) -> str:
    """The text with its first letter in upper case and the rest as it was."""
    return text[:1].upper() + text[1:]


# --- stories: who and where --------------------------------------------------------------------

SHE_NAMES = tuple(
    """Mia Lily Ruby Nora Zoe Ella Ivy Rosa Luna Hazel Clara Daisy Maya Anna Poppy Wren Olive Tess
    Holly Penny Bella Fern Ada June Willow Kira Sofia Nina Elsa Greta""".split()
)
HE_NAMES = tuple(
    """Sam Leo Max Ben Tom Finn Otto Hugo Oscar Felix Jack Theo Milo Noah Toby Rusty Bruno Pip
    Jasper Oliver Arlo Ravi Kofi Emil Gus Basil Ned Ivan Luca Bolt""".split()
)

KINDS: dict[str, tuple[str, ...]] = {
    "forest": tuple("fox fox rabbit bear squirrel hedgehog badger deer mouse wolf mole".split()),
    "farm": tuple("dog dog cat cat pony goat lamb pig donkey".split()),
    "bird": tuple("owl robin crow sparrow parrot duck penguin".split()),
    "water": tuple("frog turtle otter beaver".split()),
    "wild": tuple("lion tiger elephant monkey panda giraffe".split()),
    "person": tuple(
        """girl girl boy boy princess prince king queen sailor baker gardener knight farmer painter
        shepherd pirate""".split()
    ),
    "machine": ("robot",),
    "magic": tuple("dragon dragon giant fairy wizard unicorn".split()),
}
GROUP_WEIGHTS = {
    "forest": 8,
    "farm": 5,
    "bird": 4,
    "water": 3,
    "wild": 4,
    "person": 7,
    "machine": 3,
    "magic": 4,
}
SHE_ONLY, HE_ONLY = {"girl", "princess", "queen"}, {"boy", "prince", "king"}

HOMES: dict[str, tuple[str, ...]] = {
    "forest": (
        "in a cosy den under an old oak tree",
        "at the edge of a quiet forest",
        "in a warm burrow beneath the roots of a pine tree",
        "on a hill covered with wild flowers",
    ),
    "farm": (
        "on a small farm at the end of a long road",
        "in a red barn beside a green field",
        "behind an old mill near the village",
    ),
    "bird": (
        "at the top of a tall tree",
        "in a nest above a little stream",
        "on a rock beside the cold sea",
    ),
    "water": (
        "on the bank of a slow river",
        "beside a pond full of water lilies",
        "near a lake with clear blue water",
    ),
    "wild": (
        "in a wide green valley",
        "near a waterhole under the hot sun",
        "at the foot of a great mountain",
    ),
    "person": (
        "in a small house by the sea",
        "in a village between two hills",
        "in a stone tower near the forest",
        "on a narrow street in a busy town",
    ),
    "machine": (
        "in a workshop full of tools and wires",
        "in a busy town with many lights",
        "in a little house beside an old factory",
    ),
    "magic": (
        "in a cave behind a silver waterfall",
        "on top of a mountain above the clouds",
        "in a deep forest where the trees could whisper",
    ),
}
ADJECTIVES = tuple(
    """small little little clever kind shy curious cheerful quiet young gentle friendly
    playful merry tiny lively""".split()
)
FRIEND_GROUPS = ("forest", "farm", "bird", "water", "wild", "machine")

PRONOUNS = {
    "she": ("she", "her", "her", "herself"),
    "he": ("he", "him", "his", "himself"),
}

OPENINGS = (
    "[Once upon a time|Once upon a time|Once upon a time|Long ago|Once], there [was|lived] a {adj}"
    " {kind} [named|called] {name}. {he} lived {home}.",
    "[Once upon a time|Once upon a time|Long ago], a {adj} {kind} [named|called] {name} lived"
    " {home}.",
    "{name} was a {adj} {kind} who lived {home}.",
    "There was once a {adj} {kind} [named|called] {name}, who lived {home}.",
)
ENDINGS = ("", "", "", "", "", "", " The end.")

COMMON_SLOTS: dict[str, tuple[str, ...]] = {
    "day": ("morning", "afternoon", "sunny morning", "windy day", "spring morning", "autumn day"),
    "spot1": ("the old bridge", "the apple orchard", "the mill", "the big rock", "the market"),
    "spot2": ("the well", "the garden gate", "the duck pond", "the bakery", "the hollow tree"),
    "hiding": (
        "in the tall grass",
        "under a thick bush",
        "behind a mossy stone",
        "between two roots",
        "at the bottom of a dry ditch",
    ),
    "food": (
        "a round loaf of bread",
        "a basket of ripe berries",
        "a pot of honey",
        "a bag of sweet nuts",
        "a warm apple pie",
        "a big piece of cheese",
    ),
    "walk": ("through the forest", "along the river", "across the meadow", "over the hills"),
    "joy": (
        "laughed with joy",
        "clapped and cheered",
        "danced in a circle",
        "smiled from ear to ear",
    ),
    "weather": (
        "The sun was warm, and the sky was blue.",
        "A soft wind was blowing.",
        "The birds were singing in the trees.",
        "The air smelled of fresh grass.",
        "White clouds were floating over the hills.",
    ),
}


@dataclass(frozen=True)
class Plot:
    """A story's body, the themes it answers to, and rows of values that belong together."""

    themes: tuple[str, ...]
    columns: str
    rows: tuple[tuple[str, ...], ...]
    body: str
    excluded: tuple[str, ...] = ()

    def draw(self, rng: random.Random) -> dict[str, str]:
        """One row, by column name."""
        return dict(zip(self.columns.split(), rng.choice(self.rows), strict=True))


# --- stories: what happens ---------------------------------------------------------------------

LOST = Plot(
    ("a lost {thing}", "something that was lost", "a {thing}"),
    "thing use",
    (
        ("red scarf", "kept {him} warm on cold days"),
        ("silver bell", "made a sweet sound"),
        ("yellow kite", "could fly higher than the trees"),
        ("brass key", "opened an old wooden box"),
        ("wooden flute", "made soft music"),
        ("green hat", "had a long white feather"),
        ("music box", "played a slow and happy song"),
        ("little lantern", "gave a warm golden light"),
        ("picture book", "was full of ships and castles"),
        ("blue ball", "bounced higher than any other ball"),
        ("magic stone", "glowed in the dark"),
        ("toy boat", "had a real white sail"),
    ),
    """{he} had a {thing} that {use}[| and was {his} favourite thing in the world].

    [One|But one] {day}, the {thing} was gone. {name} looked [under the table|in every corner],
    [behind the door|beside the window] and [in the garden|on the path], but {he} could not find
    it. [Soon|Just then], {friend} the {fkind} came [by|along]. "[Why are you so sad|What is
    wrong|What is the matter], {name}?" {fhe} asked. "I have lost my {thing}," said {name}. "[Do
    not worry|Cheer up|Do not be sad]," said {friend}. "[We will look for it together|I will help
    you to find it]."

    They went to {spot1} and then to {spot2}. [At last|Just before sunset], {friend}
    [saw|noticed|spotted] something {hiding}. It was the {thing}! [|The wind had carried it
    there.|A little bird had dropped it there.] {name} {joy}. "Thank you, {friend}!" {he} said.
    "[You are the best friend in the world|You are a true friend]." From that day on, [{name} kept
    the {thing} in a safe place|the two friends shared the {thing}].""",
)

SMALL_HELPER = Plot(
    ("being kind", "kindness", "a {tiny}"),
    "tiny trouble rescue later laterhelp",
    (
        (
            "ladybird",
            "had fallen into a puddle",
            "held out a leaf and lifted the ladybird out",
            "got lost in the fog",
            "flew ahead and showed the way home",
        ),
        (
            "butterfly",
            "was caught in a spider web",
            "broke the threads one by one",
            "could not find the way out of a dark wood",
            "led the way from flower to flower",
        ),
        (
            "bee",
            "was too cold to fly",
            "carried the bee to a warm flower",
            "was hungry and far from home",
            "showed the way to a tree full of honey",
        ),
        (
            "snail",
            "was stuck on the hot road",
            "moved the snail to a cool green leaf",
            "dropped a ring down a narrow hole",
            "crept into the hole and pushed the ring out",
        ),
        (
            "ant",
            "could not carry a heavy seed",
            "carried the seed to the ant hill",
            "spilled a bag of rice in the grass",
            "came with a hundred friends and gathered every grain",
        ),
        (
            "firefly",
            "was trapped in a glass jar",
            "opened the jar and set the firefly free",
            "was caught outside on a dark night",
            "came with a hundred friends and lit up the path",
        ),
    ),
    """One {day}, {name} was going {walk} when {he} heard a [tiny|thin] voice. "Help! [Please help
    me|Can anybody hear me]!" {name} looked down. It was a {tiny} that {trouble}.

    "[Hold on, I will help you|Do not be afraid]," said {name}. Very carefully, {he} {rescue}.
    "Thank you!" said the {tiny}. "[One day I will help you too|I will never forget this]." {name}
    [smiled|laughed a little]. How could [such a small creature|somebody so small] help {him}?

    [Some days later|A week later|Not long after that], {name} {later}. {he} did not know what to
    do. Then {he} heard the same small voice. "[Do not worry|I am here], {name}!" said the {tiny},
    and it {laterhelp}. "[Thank you|You kept your promise], little friend," said {name}. [After
    that|From that day on], {name} knew that [no friend is too small|a kind act is never
    wasted].""",
)

FEAR = Plot(
    ("being brave", "courage", "a {kind} who is afraid of {fear}", "fear"),
    "fear sign lesson",
    (
        ("the dark", "when the sun went down", "The night was full of stars and soft sounds"),
        ("thunder", "when black clouds came over the hills", "The storm was only a loud song"),
        ("deep water", "when the others went to the lake", "The water was cool and calm"),
        ("high places", "when the others climbed the hill", "The world looked beautiful"),
        ("loud noises", "when the drums began to play", "The noise was only happy music"),
        ("strangers", "when a visitor came to the door", "The visitor had a warm smile"),
    ),
    """{name} was afraid of {fear}. Every time, {sign}, {he} [hid under a blanket|ran away and
    hid|closed {his} eyes and trembled]. [Nobody knew about it.|It was {his} secret.]

    One {day}, {he} told {his} [good|old|best] friend {friend} the {fkind}. "[I wish I were brave|I
    am not brave at all]," said {name}. {friend} did not laugh. "Everybody is afraid of something,"
    {fhe} said. "[Being brave means trying even when you are afraid|Being afraid together is only
    half as bad]. [Take a deep breath|Count to three], and I will stay beside you."

    The next time, {sign}, {name} did not run away. {he} [took a deep breath|counted to three] and
    stayed next to {friend}. [|One minute passed, and then another.] Nothing bad happened.
    {lesson}. "[I did it|I am still here]!" said {name}. "I knew you could," said {friend}. [After
    that|From then on], {name} was still a little afraid of {fear} [from time to time|now and
    then], but {he} never ran away again.""",
)

PRACTICE = Plot(
    ("learning to {skill}", "never giving up", "a {kind} who learns to {skill}"),
    "skill fail win show",
    (
        (
            "fly a kite",
            "the kite fell into a bush",
            "the kite climbed into the clouds",
            "kite contest",
        ),
        ("play the flute", "only a squeak came out", "a lovely tune came out", "spring concert"),
        ("ride a bicycle", "{he} fell off", "{he} rode like the wind", "bicycle race"),
        ("bake bread", "the bread was hard", "the bread was soft and golden", "harvest feast"),
        ("juggle", "all the balls fell down", "three balls danced in the air", "summer fair"),
        ("paint", "the picture looked grey", "the picture looked like the sea", "art show"),
        ("skate", "{he} slipped and fell", "{he} glided over the ice like a swan", "winter fair"),
        ("dance", "{he} fell over", "{he} turned and jumped in time", "village dance"),
        ("row a boat", "the boat went in circles", "the boat flew over the lake", "boat race"),
    ),
    """More than anything, {name} wanted to learn to {skill}. One {day}, {he} tried for the first
    time, but {fail}. {he} tried again, and again {fail}. "[I will never learn it|It is too hard
    for me]," said {name}, and {he} went home [with a heavy heart|feeling sad].

    On the way, {he} met {friend} the {fkind}. "[What is wrong|What happened]?" asked {friend}.
    {name} told {fhim} everything. "Nobody can do it on the first day," said {friend}. "[Try a
    little every day|Practise a little each morning], and [do not give up|be patient]."

    So {name} practised every day. [Each day it went a little better.|In the rain and in the sun,
    {he} kept trying.] Then came the day of the {show}. {name} took a deep breath, and this time
    {win}. Everybody cheered, and {friend} cheered the loudest. {name} was very proud. [Now {he}
    knew|{he} had learned] that [small steps can lead far|practice makes hard things easy].""",
)

SHARING = Plot(
    ("sharing", "a hungry {fkind}", "winter"),
    "season",
    (
        ("One cold winter day",),
        ("One rainy evening",),
        ("One snowy morning",),
        ("At the end of autumn",),
    ),
    """{season}, {name} had only {food} left. {he} was [just about to eat|ready to eat] when there
    was a knock at the door.

    It was {friend} the {fkind}, [wet and shivering|cold and tired]. "[Please, may I come in|May I
    warm myself]?" {fhe} asked. "I have not eaten since yesterday." {name} looked at {his} food. It
    was [very small|hardly enough for one]. But {he} thought of the long cold road outside. "Come
    in," said {name}. "[We will share what I have|Half of it is yours]." They ate together by the
    fire and [told stories|sang songs] until [late at night|the stars came out].

    [In the spring|Some weeks later], {name} found a [big|heavy] basket in front of the door. It
    was full of [apples and nuts|bread and cheese|carrots and pears]. "[Thank you for sharing with
    me|For the friend who opened the door]," said a note. "Your friend, {friend}." {name}
    [smiled|was very happy]. [{he} had given away half a meal and found a friend for life.|Sharing
    had made both of them rich.]""",
    ("machine",),
)

LOST_WAY = Plot(
    ("finding the way home", "getting lost", "the forest"),
    "lure guide arrive",
    (
        ("followed a butterfly", "the sound of the river", "The river led past the old mill"),
        ("followed a strange song", "the North Star", "The star hung right above the village"),
        ("went to look for mushrooms", "the smell of bread", "The smell grew stronger"),
        ("chased a golden leaf", "the light of the moon", "The moon shone on the old stone path"),
        ("went to find the rainbow", "the village bell", "With every step the bell grew louder"),
    ),
    """One {day}, {name} {lure} [deep into|far into] the forest. When {he} [stopped at last|finally
    turned around], all the trees looked the same. {name} was lost.

    "[Which way is home|How will I find my way back]?" {he} said. It was getting dark. Then {he}
    met {friend} the {fkind}, who was [resting under a tree|gathering leaves]. "[Excuse me|Hello],
    I cannot find my way home," said {name}. "I do not know where you live," said {friend}, "but [I
    can teach you a trick|I know what to do]. Be still for a moment. What do you notice?"

    {name} stood still. Then {he} noticed {guide}. "[I know that|That is near my home]!" {he} said.
    Together they followed {guide}. {arrive}. [Soon|Before long], {name} saw {his} own front door.
    [After that|From then on], whenever {name} was in trouble, {he} [first stood still and
    thought|took a deep breath and looked around].""",
)

SEED = Plot(
    ("patience", "a garden", "a seed"),
    "seed plant gift",
    (
        ("a tiny black seed", "sunflower", "It was taller than the house"),
        ("a round brown seed", "tree", "It gave red apples to everybody who passed by"),
        ("a striped seed", "pumpkin", "It was so big that nobody could lift it"),
        ("a silver seed", "rose bush", "It had a hundred white roses"),
        ("a flat yellow seed", "bean plant", "It climbed all the way up to the roof"),
    ),
    """One {day}, {name} found {seed} on the path. {he} planted it [in the garden|in front of the
    house|beside the fence] and gave it some water. Then {he} sat down and waited. Nothing
    happened. The next day, {name} looked again, and still nothing had happened. "[Grow|Hurry up],
    little seed!" {he} said.

    {friend} the {fkind} [was passing by|looked over the fence]. "[You cannot hurry a seed|A seed
    has its own time]," said {friend}. "[Give it water, sun and time|Water it, and be patient]." It
    was hard to wait, but every morning {name} brought fresh water. [A week went by.|It rained, and
    the sun shone.]

    Then, one morning, there was a small green leaf. {name} {joy}. The leaf grew and grew, until it
    was a {plant}. {gift}. "[It was worth the wait|You were right, {friend}]," said {name}. And
    when somebody asked how {he} had done it, {name} [smiled and said|answered], "[Water, sun and
    time|A little care every day]." """,
)

BUILDING = Plot(
    ("building a {thing}", "working together", "a {thing}"),
    "thing purpose broke fix",
    (
        ("tree house", "watch the stars", "the floor broke in two", "used thicker boards"),
        ("raft", "cross the lake", "the raft fell apart", "tied the logs with better knots"),
        ("bridge", "cross the stream", "the bridge fell down", "put stones under each end"),
        ("sled", "ride down the hill", "the sled broke", "cut stronger wood"),
        ("cart", "carry apples to the market", "a wheel rolled away", "made a new wheel"),
        ("windmill", "grind corn", "the wind tore the sails", "sewed new sails"),
    ),
    """{name} wanted to build a {thing} to {purpose}. "[I do not need any help|I can do it all by
    myself]," {he} said when {friend} the {fkind} [offered to help|came to help]. [By evening|After
    three days], the {thing} was ready. But [the first time {he} used it|as soon as {he} tried it],
    {broke}.

    {name} sat down. "[All that work for nothing|Now I must give up]," {he} said. {friend} came and
    [looked at the pieces|sat down beside {him}]. "It was a good idea," said {friend}. "Shall we
    try it together?" This time, {name} said yes.

    First they made a plan. {name} [was good at cutting wood|had strong arms], and {friend} [had a
    sharp eye|had good ideas]. Together they {fix}. [They worked until sunset.|The work went twice
    as fast.] When they tried the new {thing}, it did not break. Now they could {purpose} [every
    day|as often as they liked]. "[We did it|Our {thing} is the best of all]!" said {name}. "[Thank
    you for your help|Next time I will ask you first]." """,
)

NEWCOMER = Plot(
    ("a new friend", "friendship", "making friends", "a new neighbour"),
    "hobby together",
    (
        ("painting stones", "painted a long row of stones"),
        ("watching the clouds", "found ships and castles in the clouds"),
        ("making paper boats", "sent paper boats down the stream"),
        ("collecting shells", "made a necklace of shells"),
        ("telling riddles", "told riddles until the sun went down"),
        ("playing the drum", "played music for the whole village"),
    ),
    """One {day}, somebody new moved in next door. It was {friend} the {fkind}. The others
    [whispered and kept away|were not sure about the newcomer]. But {name} had [another idea|a
    different thought]. "[Perhaps {friend} is only shy|It is hard to be new]," {he} said.

    The next day, {name} took {food} and knocked on the door. It opened [slowly|just a little].
    "[Welcome|Hello]! I am {name}," said {name}. "[This is for you|I have brought you a present]."
    {friend} looked surprised. "You are my first visitor," {fhe} said [softly|in a quiet voice].
    Then {fhe} [smiled|opened the door wide].

    They talked for a long time, and {name} learned that {friend} loved {hobby}. "I love that too!"
    said {name}. So they {together}. [The others heard them laughing and came to see.|One by one,
    the others came to look.] Soon everybody was having fun. "[I am glad that you came|Thank you
    for knocking on my door]," said {friend}. [A single hello can start a great friendship.|A
    friend is sometimes only one door away.]""",
)

TRUTH = Plot(
    ("telling the truth", "a broken {thing}", "being honest"),
    "thing how repair",
    (
        ("blue vase", "while {he} was chasing a ball", "glued the pieces together"),
        ("old clock", "while {he} was playing with it", "put in a new spring"),
        ("window", "when {he} kicked a ball too hard", "put in new glass"),
        ("white teapot", "while {he} was dancing on the table", "made a new lid from clay"),
        ("garden gate", "when {he} jumped on it", "nailed on a new board"),
        ("big mirror", "when {he} threw {his} hat", "set new glass in the frame"),
    ),
    """{his} neighbour, {friend} the {fkind}, had a {thing} that was very old. One {day}, {name}
    broke the {thing} {how}. {name} [stood very still|looked around]. Nobody had seen it. "[I could
    say that the wind did it|I will just go home and say nothing]," {he} thought.

    But at home, {name} could not [eat|sleep|play]. {he} thought about the {thing} all the time.
    The next day, {friend} asked everybody, "[Who broke my {thing}|Do you know what happened to my
    {thing}]?" "It was me," said {name}. "I am [very|so] sorry."

    [|It was quiet for a moment.] Then {friend} smiled. "A {thing} can be mended," {fhe} said, "and
    [I am glad that you told me the truth|it took courage to tell me]." Together they {repair}.
    When {name} went home, {his} heart was light. That night {he} slept well, because [the truth
    weighs nothing|there was nothing left to hide].""",
)

STORM = Plot(
    ("a storm", "a rainy night", "helping others"),
    "storm",
    (
        ("a great storm came over the hills",),
        ("it rained so hard that the stream became a river",),
        ("the snow fell until the paths were gone",),
        ("a wild wind shook the trees",),
    ),
    """One night, {storm}. {name} was [safe and dry|warm and dry] at home. Then there was a knock
    at the door. It was {friend} the {fkind}. "[The wind has blown my roof away|My home is full of
    water]," said {friend}. "[Of course you can stay|Come in]," said {name}.

    [A little later|Soon after], there was another knock. A family of mice came in, and then [two
    wet rabbits|an old goose|a muddy pig]. The room was small, but {his} heart was big. "If we sit
    close together, there is always room," said {name}.

    All night long, the storm [roared|howled] outside. Inside, they [told stories|sang songs] and
    drank hot tea. Nobody was afraid. In the morning, they all helped {friend} to mend {fhis} home.
    "Your house is small, but it is the warmest of all," they told {name}. [It had been the best
    storm of {his} life.|{he} had never had so many friends.]""",
)

RACE = Plot(
    ("a race", "winning and losing", "helping a friend"),
    "prize",
    (("a golden cup",), ("a big cake",), ("a silver medal",), ("a blue ribbon",), ("a new drum",)),
    """Every year there was a [big|great] race [around the lake|from the mill to the sea|through
    the valley], and the winner got {prize}. "[This year I will win|This is my year]," said {name}.

    On the day of the race, {name} was as quick as the wind. {he} passed one runner after another,
    and soon {he} was in front. Then {he} heard a cry. {friend} the {fkind} had [fallen into a
    ditch|slipped on a wet stone] and could not get up. {name} thought for only a moment, and then
    {he} turned around. "[Lean on me|Hold on to me]," {he} said. "[We will finish together|I will
    not leave you here]."

    Step by step they went on, and all the others ran past them. They came in last, but the crowd
    [cheered louder than ever|stood up and clapped]. [|The winner shared the prize with them.]
    "{name} has the biggest heart," said the judge. {name} and {friend} [became the best of
    friends|trained together from that day on].""",
)

SURPRISE = Plot(
    ("a birthday", "a surprise", "a party"),
    "gift",
    (
        ("a warm blanket with stars on it",),
        ("a small boat with a red sail",),
        ("a book with empty pages",),
        ("a wooden chair",),
        ("a round hat with a golden ribbon",),
    ),
    """It was {his} birthday, but nobody seemed to remember. {name} went for a walk and met
    {friend} the {fkind}. "[Good morning|Hello]! Do you know what day it is?" asked {name}. "[I am
    very busy|I have no time]," said {friend}, and {fhe} hurried away.

    {he} sat by the stream for a long time. "[Perhaps nobody likes me|They have all forgotten me],"
    {he} thought. When it was getting dark, {name} went home. The house was dark and quiet. {he}
    opened the door.

    "Surprise!" everybody shouted. There were candles everywhere, and on the table there was a
    [huge|tall] cake. "[We have been preparing this all day|We were busy because of you]," said
    {friend}. "Happy birthday, {name}!" They gave {him} {gift}, and they [danced and sang|played
    games] until midnight. "I thought you had forgotten," said {name}. "[We could never forget a
    friend|We would never forget you]," said {friend}.""",
)

NOISE = Plot(
    ("a strange noise", "a mystery", "a strange night"),
    "noise source calm",
    (
        ("Tap, tap, tap", "a branch at the window", "tied the branch back"),
        ("Scratch, scratch", "a hungry kitten", "gave the kitten some milk"),
        ("Whoo, whoo", "a baby owl", "put the owl back in its nest"),
        ("Drip, drop", "a hole in the roof", "put a bucket under the hole"),
        ("Clack, clack", "a loose board", "put a nail in the board"),
        ("Buzz, buzz", "a beetle in a lantern", "let the beetle out"),
    ),
    """One night, {name} woke up. "{noise}!" went something [in the dark|outside]. "[What is
    that|Is somebody there]?" {he} whispered. Nobody answered. "{noise}!" it went again. Perhaps it
    was a [ghost|monster]. {name} pulled the blanket over {his} head.

    In the morning, {he} told {friend} the {fkind} about it. "[I will stay with you tonight|Tonight
    we will listen together]," said {friend}. When night came, they sat by the window with a
    lantern. "{noise}!" {name} [held {his} breath|jumped]. "[Come on|Let us look]," said {friend}.
    "Things look smaller in the light." Step by step, they crept closer and lifted the lantern.

    It was only {source}! They {calm}, and then everything was quiet. "[I was afraid of so
    little|And I thought it was a monster]," said {name}. [After that|From then on], when {he}
    heard a strange noise, {he} [took a lantern and went to look|was more curious than afraid].""",
)

TREASURE = Plot(
    ("a treasure", "a treasure map", "an adventure", "an old map"),
    "found meaning",
    (
        ("a golden mirror", "The treasure is the one who dared to look"),
        ("a bag of seeds", "Plant these, and the treasure will grow every year"),
        ("an old book of songs", "A song is a treasure that grows when you share it"),
        ("two cups and a teapot", "The best treasure is a friend to drink tea with"),
        ("a spyglass", "If you look carefully, you will find treasures everywhere"),
        ("a box full of letters", "Kind words are worth more than gold"),
    ),
    """One {day}, {name} found an old map [inside a bottle|in a dusty chest|under a loose stone].
    "A treasure!" said {name}. {he} ran to {his} friend {friend} the {fkind}, and they set out at
    once with {food}.

    First, they had to [cross a shaking bridge|climb a steep hill|go through a dark tunnel].
    {friend} wanted to turn back, but {name} went first. Next, they came to [a field of thorns|a
    wide swamp|a wall of rocks]. {name} could not see a way, but {friend} found a narrow path. At
    last they came to [an old oak|a round hill|a quiet bay], and there they dug.

    Inside a wooden box was {found}, and a note. "{meaning}," it said. There was no gold, but they
    were not sad. "[It was the best day of my life|What an adventure]!" said {name}. They shared
    the food and went home [under the evening sky|as the sun went down].""",
    ("water",),
)

REPAIR = Plot(
    ("a broken {thing}", "fixing things", "a clever {kind}"),
    "thing stop cause",
    (
        ("clock", "the big clock stopped", "A pigeon had built a nest between the wheels"),
        ("fountain", "the water stopped", "A round stone was stuck in the pipe"),
        ("lighthouse", "the great light went out", "A wire had come loose"),
        ("mill", "the wheel stood still", "A branch was caught under the wheel"),
        ("bell", "the bell lost its voice", "Somebody had left a sock inside"),
    ),
    """Everybody in the [town|village] was proud of the old {thing}. But one {day}, {stop}. The
    strongest workers pushed and pulled, but nothing helped. "[We must build a new one|It is broken
    for ever]," said the mayor sadly.

    "May I have a look?" asked {name}. Some of them laughed. "You are only a {kind}," they said.
    But {friend} the {fkind} said, "Let {name} try!" So {name} [went inside with a small lamp|crept
    inside and listened]. {he} did not push, and {he} did not pull. {he} looked at every part, one
    by one. [After an hour|After a while], {he} found it. {cause}.

    [Carefully|With great care], {name} put it right, and the {thing} was working again! "How did
    you do it?" asked the mayor. "[I looked before I pushed|First I looked, and then I thought],"
    said {name}. From that day on, [whenever something broke, they called {name}|everybody came to
    {name} for advice].""",
    ("wild",),
)

STAR = Plot(
    ("a star", "the moon", "a wish", "the night sky"),
    "light fallen back",
    (
        ("star", "a little star had fallen into the grass", "threw it high into the night"),
        ("moonbeam", "a moonbeam was caught in a tree", "lifted it into the sky"),
        ("cloud", "a small white cloud was stuck on a fence", "gave it to the wind"),
        ("firefly", "a firefly was crying in the grass", "let it fly into the night"),
    ),
    """One night, {name} could not sleep, so {he} went outside. Near {spot1}, {fallen}. "[I want to
    go home|I am lost]," said the {light} in a soft voice. "[Please help me|My family is far
    away]."

    "[Do not cry|I will help you]," said {name}. {he} called {friend} the {fkind}, who always had
    good ideas. "[We need a high place|We must go up the hill]," said {friend}. So they went up the
    [highest|tallest] hill. At the top, they {back}. [Up, up, up it went.|It rose slowly into the
    air.]

    "Thank you!" called the {light}. "You may have one wish!" {name} thought about [gold and
    silver|cakes and toys], but then {he} looked at {friend}. "[I wish that we will always be
    friends|I wish that nobody should be lonely tonight]," {he} said. The sky [grew bright for a
    moment|shone brighter than before]. And on a clear night, you can still see a small light that
    winks.""",
)

MISTAKE = Plot(
    ("making mistakes", "a new job", "learning something new"),
    "task wrong right",
    (
        ("water the flowers", "watered the carpet", "watered every flower with care"),
        ("sort the books", "put them all in the bath", "put every book in its place"),
        ("make soup", "put a shoe into the pot", "made the best soup in town"),
        ("feed the hens", "gave the hens a newspaper", "filled every bowl with corn"),
        ("wrap presents", "wrapped up the table", "tied a perfect bow on every box"),
        ("deliver letters", "lost half of them", "brought each letter to the right door"),
    ),
    """It was the first day of {his} new job. {friend} the {fkind} asked {name} to {task}. "[That
    is easy|I will do my best]!" said {name}. But nobody had explained how to do it, and {he}
    {wrong}. "[Oh dear|Oh no]!" said {name}.

    {friend} was not angry. "Mistakes are how we learn," {fhe} said. "[Watch me|Let me show you
    how], and then try again." {name} watched closely and [remembered every step|asked many good
    questions]. Then {he} tried again. [It was not perfect, but it was better than before.|The
    second time was better, and the third time was better still.]

    By the end of the [week|month], {name} {right}. "[I made every mistake once|I had a patient
    teacher]," said {name}, and {friend} [laughed|smiled]. The next day, somebody new came to work
    and made a big mess. {name} smiled. "Do not worry," {he} said. "[Watch me|Let me show you], and
    then try again." """,
)

CHORE = Plot(
    ("helping at home", "a quiet day", "a {kind} and a {fkind}"),
    "chore reward",
    (
        ("carry wood", "drank hot cocoa"),
        ("sweep the yard", "ate warm bread"),
        ("pick the apples", "made a sweet apple cake"),
        ("wash the windows", "watched the sunset through them"),
        ("paint the fence", "looked at the bright new colours"),
    ),
    """One {day}, {name} had to {chore}, but {he} did not want to. {weather} "[I would rather
    play|It will take for ever]," {he} said.

    Then {friend} the {fkind} came [by|along]. "[What are you doing|Why do you look so cross]?"
    asked {friend}. "I have to {chore}," said {name}. {friend} thought for a moment. "[Let us make
    a game of it|It is more fun with two]," {fhe} said. So {name} counted, and {friend} sang a
    song. They worked and sang, and they laughed so much that [the time flew by|two crows came to
    listen].

    Soon all the work was done. "[Any work is half as long with a friend|A song makes work light],"
    said {friend}. In the evening they sat down together and {reward}. The next day, {name} went to
    the home of {friend}. "What do you have to do today?" {he} asked. "[I know a good game|This
    time I will sing]." """,
)

WINDY_HAT = Plot(
    ("the wind", "a windy day", "a hat"),
    "hat use",
    (
        ("straw hat", "a nest for three eggs"),
        ("red hat", "a boat for a family of mice"),
        ("tall hat", "a house for a hedgehog"),
        ("blue cap", "a bed for a tiny kitten"),
    ),
    """One windy day, the wind took {his} {hat} and carried it away. {name} ran {walk}, but the
    wind was faster. "[Come back|Stop, hat]!" {he} called. {friend} the {fkind} [laughed|heard it]
    and ran along.

    They found the {hat} the next morning, {hiding}. Somebody had made it into {use}! {name} wanted
    to take it back, but then {he} smiled. "[I can do without it|They need it more than I do],"
    {he} said. {friend} nodded. On the way home, {name} felt the sun on {his} head, and [it felt
    very good|{he} did not miss the {hat} at all].""",
)

NARROW_BRIDGE = Plot(
    ("two friends", "a quarrel", "being polite"),
    "way",
    (("bridge",), ("path",), ("mountain road",), ("wooden stair",)),
    """One {day}, {name} met {friend} the {fkind} in the middle of a narrow {way}. "Let me pass!"
    said {name}. "No, you must go back," said {friend}. They [argued until noon|stood there for an
    hour], and neither of them moved.

    Then it began to rain, and soon they were both wet. {name} looked at {friend} and began to
    laugh. "[We are both very silly|This is very silly]," {he} said. {name} lay down, and {friend}
    climbed over {him} with care. "[Thank you|That was kind of you]," said {friend}. [Since
    then|From that day on], they have met on the {way} every day, [only to talk|and each one says,
    "After you"].""",
)

FIRST_SNOW = Plot(
    ("the snow", "the first snow", "a snowman"),
    "nose",
    (("a carrot",), ("a pine cone",), ("a red apple",), ("a small potato",)),
    """One morning, the whole world was white. {name} had never seen snow before. "[Who has painted
    everything|What is this white sand]?" {he} asked. {friend} the {fkind} laughed. "It is snow,"
    said {friend}. "[Come, I will show you what it can do|You can build with it]."

    They made a big ball, and a small one, and put one on top of the other. {friend} gave the
    snowman {nose} for a nose, and {name} gave it a hat. In the spring the snowman became smaller
    and smaller, and {name} was sad. "[It will come back|It is only sleeping]," said {friend}.
    "[Next winter we will build it again|It will return with the first snow]." """,
)

SONG = Plot(
    ("a song", "music", "singing"),
    "place",
    (("by the window",), ("on the roof",), ("under the stars",), ("in the garden",)),
    """Every evening, {name} sang a song {place}. {he} thought that nobody could hear {him}. One
    evening, {name} was [ill|very tired] and did not sing.

    Soon there was a knock at the door. It was {friend} the {fkind}, with {food}. "[Why is it so
    quiet|Where is the song today]?" asked {friend}. "[Everybody in the valley listens to you|We
    listen every night], and [the children cannot sleep without it|we missed you]." {name} was very
    surprised. {he} ate a little and felt better. The next evening, {name} sang again, and this
    time all the neighbours [sang along|came to listen].""",
)

SOUP = Plot(
    ("soup", "cooking", "a pot of soup"),
    "extra",
    (("carrots",), ("mushrooms",), ("beans",), ("potatoes",), ("onions",)),
    """One {day}, {name} made a pot of soup. It smelled good, but it tasted of nothing. "[What is
    missing|Something is not right]," {he} said. {friend} the {fkind} looked in through the window.
    "I have some {extra}," said {friend}. So they put them in, and the soup tasted better.

    A goose brought salt, and a mouse brought a little pepper. {name} stirred and tasted. "[Almost
    perfect|It is nearly right]," {he} said, "but something is still missing." {friend} looked
    around and laughed. "[Bowls and guests|Plates and friends]!" So they all sat down together and
    ate, and now [nothing was missing|it was the best soup in the world].""",
    ("machine",),
)

MIRROR = Plot(
    ("the lake", "a picture in the water", "a funny mistake"),
    "water",
    (("lake",), ("pond",), ("well",), ("river",)),
    """One {day}, {name} looked into the {water} and saw a face. "Hello!" said {name}. The face
    moved its mouth, but it said nothing. "[How rude|Why do you not answer]?" {he} said, and {he}
    made a cross face. The face in the {water} looked cross too.

    {friend} the {fkind} came along. "[Try a smile|Smile at it], and see what happens," said
    {friend}. {name} smiled, and the face smiled back. "[Now it likes me|It is friendly after
    all]!" said {name}. {friend} laughed. "It is you," said {friend}. "[The water gives back what
    you bring to it|The world is often like that too]." {name} thought about it all the way home,
    and {he} smiled at [everybody|all who passed by].""",
)

SHORT_PLOTS = (WINDY_HAT, NARROW_BRIDGE, FIRST_SNOW, SONG, SOUP, MIRROR)
LONG_PLOTS = (
    LOST,
    SMALL_HELPER,
    FEAR,
    PRACTICE,
    SHARING,
    LOST_WAY,
    SEED,
    BUILDING,
    NEWCOMER,
    TRUTH,
    STORM,
    RACE,
    SURPRISE,
    NOISE,
    TREASURE,
    REPAIR,
    STAR,
    MISTAKE,
    CHORE,
)
PLOTS = LONG_PLOTS + SHORT_PLOTS


def _pick_group(rng: random.Random, allowed: Sequence[str]) -> str:
    return rng.choices(allowed, [GROUP_WEIGHTS[group] for group in allowed])[0]


def _make_cast() -> dict[str, tuple[str, str]]:
    """By kind, the one gender and name that its character has in every story.

    A model this small cannot carry names drawn afresh from a story's first line to its last; one
    fox, always called the same, it can.
    """
    names = {"she": iter(SHE_NAMES), "he": iter(HE_NAMES)}
    cast: dict[str, tuple[str, str]] = {}
    for kind in dict.fromkeys(kind for kinds in KINDS.values() for kind in kinds):
        gender = "she" if kind in SHE_ONLY or (kind not in HE_ONLY and len(cast) % 2) else "he"
        cast[kind] = (gender, next(names[gender]))
    return cast


CAST = _make_cast()


def _name(gender: str, rng: random.Random, taken: str = "") -> str:
    names = SHE_NAMES if gender == "she" else HE_NAMES
    return rng.choice([name for name in names if name != taken])


def make_story(rng: random.Random, plot: Plot | None = None) -> Story:
    """A story of 80 to 160 words, with the slots that fill it (name, kind, friend and so on)."""
    while True:
        story = _draft_story(rng, plot or rng.choice(PLOTS))
        if STORY_WORDS[0] <= len(story.text.split()) <= STORY_WORDS[1]:
            return story


def draw_slots(rng: random.Random, plot: Plot) -> dict[str, str]:
    """Who is in a story, where, and what it is about."""
    groups = [group for group in KINDS if group not in plot.excluded]
    group = _pick_group(rng, groups)
    kind = rng.choice(KINDS[group])
    gender, name = CAST[kind]
    friend_group = _pick_group(rng, FRIEND_GROUPS)
    friend_kind = rng.choice([k for k in KINDS[friend_group] if k != kind] or ["owl"])
    friend_gender, friend_name = CAST[friend_kind]
    slots = {slot: rng.choice(values) for slot, values in COMMON_SLOTS.items()}
    slots |= dict(zip(("he", "him", "his", "himself"), PRONOUNS[gender], strict=True))
    slots |= dict(zip(("fhe", "fhim", "fhis"), PRONOUNS[friend_gender], strict=False))
    slots |= {
        "name": name,
        "kind": kind,
        "adj": rng.choice(ADJECTIVES),
        "home": rng.choice(HOMES[group]),
        "friend": friend_name,
        "fkind": friend_kind,
        "theme": rng.choice(plot.themes),
    }
    return slots | plot.draw(rng)


def _draft_story(rng: random.Random, plot: Plot) -> Story:
    slots = draw_slots(rng, plot)
    body = rng.choice(OPENINGS) + " " + plot.body + rng.choice(ENDINGS)
    return Story(expand(body, rng, slots), slots)


# --- facts -------------------------------------------------------------------------------------


def _table(block: str) -> tuple[tuple[str, str], ...]:
    """The `left => right` entries of a block; empty lines stand between the entries."""
    entries = (" ".join(entry.split()) for entry in block.split("\n\n"))
    return tuple((left, right) for left, right in (entry.split(" => ") for entry in entries))


# How a topic is asked for => its sentences; the first always stays, the others may be left out.
TOPICS = _table(
    """
machine learning => Machine learning is a way to teach computers by showing them examples. | The
  computer finds patterns in the examples instead of following rules written by hand. | It is used
  to understand speech, sort pictures and write text.

AI => AI is short for artificial intelligence. | It means that a computer does things that seem to
  need thinking. | For example, it can answer questions, play games or read text aloud.

artificial intelligence => Artificial intelligence means that a computer does things that seem to
  need thinking. | For example, it can answer questions, play games or read text aloud. | People
  often call it AI.

deep learning => Deep learning is machine learning with neural networks that have many layers. |
  Each layer learns from the layer before it. | It works well for pictures, speech and text.

a neural network => A neural network is a computer program made of many simple parts that work
  together. | Each part adds up numbers and passes the result on. | The network learns by changing
  these numbers a little at a time.

a language model => A language model is a program that has learned to guess the next word of a
  text. | By guessing one word after another, it can write whole sentences. | I am a very small
  one.

DeepInfer => DeepInfer is a tool that compiles language models into engines and serves them. | I
  am the toy language model that comes with it. | With me you can try it without a large download.

an engine => An engine turns energy into motion, as in a car or a boat. | In DeepInfer, an engine
  is a language model made ready to run fast on one machine.

a token => A token is a small piece of text, such as a word or a part of a word. | Language models
  read and write text as a list of tokens.

inference => Inference means using a model that has already been trained. | The model reads your
  text and guesses what comes next.

training => Training means that a model learns from examples. | After each guess, its numbers
  change a little, so that the next guess is better.

a computer => A computer is a machine that follows instructions very quickly. | It can store
  numbers, words, pictures and sounds. | The instructions are called programs.

a program => A program is a list of instructions for a computer. | People write programs in
  special languages, such as Python.

an algorithm => An algorithm is a list of clear steps that solve a problem. | A recipe for a cake
  is a bit like an algorithm.

Python => Python is a programming language that is easy to read. | Many people use it to work with
  data and with machine learning. | A python is also a large snake.

the internet => The internet is a network that connects computers all over the world. | People use
  it to send messages and to find information.

a GPU => A GPU is a chip that does many small calculations at the same time. | It was made for
  drawing pictures, and now it also runs language models.

a CPU => A CPU is the main chip of a computer. | It follows the instructions of a program, one
  after another, very quickly.

a server => A server is a computer or a program that answers requests from other computers. | When
  you open a web page, a server sends it to you.

open source => Open source means that everybody may read, use and improve the code of a program. |
  Many people can work on it together.

data => Data is information that a computer can store and use. | Numbers, words and pictures are
  all data.

a robot => A robot is a machine that can do work by itself. | Some robots build cars, and some
  robots clean floors. | A computer tells the robot what to do.

gravity => Gravity is the force that pulls things towards each other. | It makes an apple fall to
  the ground and keeps the moon near the Earth.

the sun => The sun is a star. | It gives the Earth light and warmth. | The Earth moves around the
  sun once a year.

the moon => The moon is a ball of rock that moves around the Earth. | It takes about one month to
  go around once. | Its light comes from the sun.

a star => A star is a huge ball of hot gas that shines. | The sun is the star that is nearest to
  us. | The other stars look small because they are very far away.

a planet => A planet is a large round body that moves around a star. | The Earth is a planet. |
  Eight planets move around our sun.

the Earth => The Earth is the planet that we live on. | Most of it is covered by water. | It turns
  around once a day.

the ocean => The ocean is the salt water that covers most of the Earth. | Fish, whales and many
  other animals live in it.

a river => A river is water that flows over the land. | Most rivers begin in hills or mountains
  and end in the sea.

a mountain => A mountain is very high land. | The top of a high mountain is often covered with
  snow.

a volcano => A volcano is a mountain with an opening to the hot rock under the ground. | Sometimes
  the hot rock comes out as lava.

a rainbow => A rainbow is a bow of colours in the sky. | You can see it when the sun shines while
  it rains. | Drops of water split the light into its colours.

rain => Rain is water that falls from clouds in drops. | Plants need rain to grow.

snow => Snow is frozen water that falls from clouds. | Each flake is made of tiny pieces of ice.

wind => Wind is air that moves. | It can push boats and turn windmills.

a cloud => A cloud is made of many tiny drops of water or pieces of ice. | When the drops become
  heavy, they fall as rain.

thunder => Thunder is the sound that lightning makes. | You see the lightning first, because light
  is faster than sound.

ice => Ice is frozen water. | It is lighter than water, so it floats.

fire => Fire is what we see when something burns. | It gives light and heat. | It needs air and
  something to burn.

water => Water is a clear liquid that all living things need. | When it is very cold, it becomes
  ice, and when it is very hot, it becomes steam.

a shadow => A shadow is a dark place where something stops the light. | Your shadow is long in the
  evening and short at noon.

a magnet => A magnet is a piece of metal that pulls iron towards it. | Every magnet has two ends,
  called poles.

a tree => A tree is a tall plant with a trunk made of wood. | Its roots drink water, and its
  leaves catch the light of the sun.

a flower => A flower is the part of a plant that makes seeds. | Bright colours and sweet smells
  bring bees to the flower.

a seed => A seed is a small part of a plant that can grow into a new plant. | It needs water,
  warmth and time.

a bee => A bee is a small insect that visits flowers and can fly. | Honey bees make honey and live
  together in a hive.

a whale => A whale is a very large animal that lives in the sea. | It is not a fish, because it
  breathes air.

a fox => A fox is a wild animal with a long thick tail. | It looks a little like a dog and often
  hunts at night.

a dragon => A dragon is a large animal in old stories. | It often has wings and breathes fire. |
  Dragons are not real.

a dinosaur => A dinosaur is an animal that lived on the Earth a very long time ago. | Some
  dinosaurs were very large, and some were as small as a hen.

the heart => The heart is a muscle that pumps blood through the body. | It beats all day and all
  night.

the brain => The brain is the part of the body that thinks and feels. | It is inside the head.

sleep => Sleep is the time when the body and the brain rest. | Children need more sleep than
  adults.

a friend => A friend is somebody whom you like and trust. | Friends help each other and have fun
  together.

a book => A book is made of pages with words or pictures. | You can read a book to learn something
  or to enjoy a story.

a library => A library is a place with many books. | You may read the books there or take them
  home for a while.

a school => A school is a place where people learn. | Teachers help the children to read, write
  and count.

music => Music is sound that is made to be enjoyed. | People make music with their voices and with
  instruments.

a clock => A clock is a machine that shows the time. | Many clocks have one hand for the hours and
  one for the minutes.

a map => A map is a picture that shows where places are. | It helps you to find your way.

a bridge => A bridge is a way over a river, a road or a valley. | Bridges can be made of wood,
  stone or steel.

a wheel => A wheel is a round thing that turns. | Wheels make it easy to move heavy things.

a bicycle => A bicycle has two wheels and two pedals. | You push the pedals with your feet to
  move.

a train => A train is a row of wagons that runs on rails. | It can carry many people or heavy
  things.

a boat => A boat carries people and things over water. | Some boats have sails, and some have
  engines.

bread => Bread is a food made of flour, water and a little salt. | It is baked in a hot oven.

honey => Honey is a sweet food that bees make. | They make it from the juice of flowers.

milk => Milk is a white drink that comes from cows, goats or sheep. | Cheese is made of milk.

a telescope => A telescope makes things that are far away look bigger. | People use it to look at
  the moon and the stars.

a family => A family is a group of people who belong together. | They live together or care for
  each other.

spring => Spring is the season after winter. | The days become longer, and flowers begin to grow.

summer => Summer is the warmest season of the year. | The days are long.

autumn => Autumn is the season between summer and winter. | The leaves turn yellow and red and
  fall from the trees.

winter => Winter is the coldest season of the year. | The days are short.
"""
)
MACHINE_TOPICS = 22  # the first topics are about computers; they are asked for more often

TOPIC_QUESTIONS = (
    "What is {topic}?",
    "What is {topic}?",
    "What is {topic}?",
    "Tell me about {topic}.",
    "Explain {topic}.",
    "Can you explain {topic}?",
    "Can you tell me what {topic} is?",
    "What do you know about {topic}?",
    "Explain {topic} in simple words.",
    "What does {topic} mean?",
    "Define {topic}.",
)

FUTURES: tuple[tuple[str, str], ...] = (
    ("AI", "Computers may help people to learn, to work and to stay well"),
    ("artificial intelligence", "Computers may help people to learn, to work and to stay well"),
    ("robots", "Robots may do the heavy work, so that people have more time"),
    ("computers", "They may become smaller, faster and easier to use"),
    ("machine learning", "Models may learn more from fewer examples"),
    ("language models", "Small models may run on every desk"),
    ("travel", "Trains may become faster and cleaner"),
    ("energy", "More of it may come from the sun and the wind"),
    ("cities", "There may be more trees and less noise in the streets"),
    ("schools", "Children may learn with books, with computers and with each other"),
    ("music", "People may invent sounds that nobody has heard before"),
    ("food", "People may grow it closer to home"),
    ("space travel", "People may go back to the moon and stay for a while"),
)

COLOURS = {
    "white": ("snow", "milk", "a swan", "salt", "chalk"),
    "green": ("grass", "a frog", "a pea", "a cucumber", "a leaf"),
    "yellow": ("a lemon", "a banana", "a canary", "butter"),
    "red": ("a tomato", "a strawberry", "a cherry", "a fire engine"),
    "black": ("coal", "a crow", "the night sky", "ink"),
    "orange": ("a carrot", "a pumpkin", "an orange"),
    "blue": ("the sky on a clear day", "the sea", "a sapphire"),
    "brown": ("chocolate", "a chestnut", "coffee", "wood"),
    "grey": ("an elephant", "a rain cloud", "a dolphin"),
    "pink": ("a flamingo", "a pig"),
    "purple": ("a plum", "an aubergine", "a violet"),
}
SOUNDS = {
    "dog": "barks",
    "cat": "meows",
    "cow": "moos",
    "duck": "quacks",
    "sheep": "bleats",
    "pig": "oinks",
    "lion": "roars",
    "owl": "hoots",
    "bee": "buzzes",
    "horse": "neighs",
    "mouse": "squeaks",
    "frog": "croaks",
    "snake": "hisses",
    "wolf": "howls",
    "bird": "sings",
}
LEGS = {
    "dog": "four legs",
    "cat": "four legs",
    "horse": "four legs",
    "cow": "four legs",
    "bird": "two legs",
    "duck": "two legs",
    "spider": "eight legs",
    "bee": "six legs",
    "ant": "six legs",
    "snake": "no legs",
    "fish": "no legs",
    "frog": "four legs",
    "beetle": "six legs",
}
BABIES = {
    "cat": "kitten",
    "dog": "puppy",
    "cow": "calf",
    "sheep": "lamb",
    "horse": "foal",
    "duck": "duckling",
    "frog": "tadpole",
    "hen": "chick",
    "bear": "cub",
    "lion": "cub",
    "goat": "kid",
    "kangaroo": "joey",
    "pig": "piglet",
    "goose": "gosling",
    "deer": "fawn",
    "owl": "owlet",
}
OPPOSITES = tuple(
    pair.split("/")
    for pair in """hot/cold big/small up/down left/right day/night fast/slow happy/sad open/closed
    full/empty old/new light/dark high/low long/short hard/soft wet/dry early/late strong/weak
    loud/quiet near/far rich/poor good/bad clean/dirty first/last heavy/light inside/outside
    always/never black/white begin/end give/take push/pull sweet/sour thick/thin true/false
    young/old wide/narrow win/lose ask/answer buy/sell yes/no""".split()
)
CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "England": "London",
    "Ireland": "Dublin",
    "Norway": "Oslo",
    "Greece": "Athens",
    "Egypt": "Cairo",
    "Austria": "Vienna",
    "Portugal": "Lisbon",
    "Poland": "Warsaw",
    "Finland": "Helsinki",
    "Canada": "Ottawa",
    "Kenya": "Nairobi",
    "China": "Beijing",
    "India": "New Delhi",
    "Peru": "Lima",
    "Cuba": "Havana",
    "Sweden": "Stockholm",
    "Hungary": "Budapest",
    "Brazil": "Brasilia",
    "Denmark": "Copenhagen",
}
PLURALS = {
    "mouse": "mice",
    "child": "children",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "leaf": "leaves",
    "sheep": "sheep",
    "box": "boxes",
    "story": "stories",
    "wolf": "wolves",
    "cat": "cats",
    "book": "books",
    "tree": "trees",
    "knife": "knives",
    "city": "cities",
}
JOBS = {
    "baker": "bakes bread and cakes",
    "farmer": "grows food and looks after animals",
    "teacher": "helps people to learn",
    "doctor": "helps people who are ill",
    "sailor": "works on a ship",
    "painter": "paints pictures or walls",
    "gardener": "looks after plants and gardens",
    "pilot": "flies a plane",
    "cook": "makes meals",
    "tailor": "makes clothes",
    "carpenter": "makes things out of wood",
    "librarian": "looks after the books in a library",
}
LISTS = {
    "animals": ("fox", "dog", "cat", "lion", "bear", "owl", "horse", "whale", "rabbit", "frog"),
    "colours": ("red", "blue", "green", "yellow", "orange", "purple", "white", "black"),
    "fruits": ("apple", "pear", "plum", "cherry", "banana", "lemon", "grape", "orange"),
    "vegetables": ("carrot", "potato", "onion", "pea", "bean", "tomato", "cucumber"),
    "birds": ("owl", "robin", "crow", "duck", "sparrow", "swan", "parrot", "penguin"),
    "countries": tuple(CAPITALS),
    "jobs": tuple(JOBS),
    "planets": ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"),
}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = """January February March April May June July August September October November
December""".split()
NUMBER_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen
fourteen fifteen sixteen seventeen eighteen nineteen twenty""".split()

# Questions with one true answer: question variants, then answer variants.
SINGLE_FACTS = _table(
    """
How many days are [there|] in a week?|How many days does a week have? => There are seven days in a
  week.|A week has seven days.

How many months are there in a year?|How many months does a year have? => There are twelve months
  in a year.|A year has twelve months.

How many days are there in a year?|How many days does a year have? => A year has 365 days, and a
  leap year has 366.

How many hours are there in a day?|How many hours does a day have? => There are 24 hours in a
  day.|A day has 24 hours.

How many minutes are there in an hour? => There are 60 minutes in an hour.

How many seconds are there in a minute? => There are 60 seconds in a minute.

How many seasons are there?|What are the seasons?|Name the four seasons. => There are four
  seasons: spring, summer, autumn and winter.

What are the days of the week?|Name the days of the week.|List the days of the week. => The days
  of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.

What are the months of the year?|Name the months.|List the months of the year. => The months are
  January, February, March, April, May, June, July, August, September, October, November and
  December.

How many letters are there in the alphabet? => There are 26 letters in the English alphabet.

What are the colours of the rainbow?|Which colours does a rainbow have? => The colours of the
  rainbow are red, orange, yellow, green, blue, indigo and violet.

What do you get when you mix blue and yellow?|What colour do blue and yellow make? => Blue and
  yellow make green.

What do you get when you mix red and yellow?|What colour do red and yellow make? => Red and yellow
  make orange.

What do you get when you mix red and blue?|What colour do red and blue make? => Red and blue make
  purple.

How many sides does a triangle have? => A triangle has three sides.

How many sides does a square have? => A square has four equal sides.

How many sides does a hexagon have? => A hexagon has six sides.

How many wheels does a bicycle have? => A bicycle has two wheels.

How many wheels does a car have? => Most cars have four wheels.

How many arms does an octopus have? => An octopus has eight arms.

Why is the sky blue? => The air scatters the blue part of the sunlight more than the other
  colours.

Where does the sun rise?|Where does the sun come up? => The sun rises in the east.

Where does the sun set?|Where does the sun go down? => The sun sets in the west.

What is the largest animal?|Which animal is the largest?|What is the biggest animal? => The blue
  whale is the largest animal in the world.

What is the fastest animal on land?|Which animal runs the fastest? => The cheetah is the fastest
  animal on land.

What is the tallest animal?|Which animal is the tallest? => The giraffe is the tallest animal.

What is the largest planet?|Which planet is the biggest? => Jupiter is the largest planet that
  moves around the sun.

What is the largest ocean?|Which ocean is the biggest? => The Pacific is the largest ocean.

What do plants need to grow?|What does a plant need? => Plants need water, light, air and soil to
  grow.

What do bees make?|What do bees do? => Bees visit flowers and make honey.

What do cows eat? => Cows eat grass and hay.

What do pandas eat? => Pandas eat bamboo.

Where do fish live? => Fish live in water.

Where do penguins live? => Most penguins live in the south of the world, where it is cold.

Is the sun a star? => Yes, the sun is a star.

Is a whale a fish? => No, a whale is not a fish. It breathes air.

Is the Earth flat?|Is the Earth round? => The Earth is round, a little like a ball.

Can penguins fly? => No, penguins cannot fly, but they swim very well.

Can fish breathe under water? => Yes, fish breathe under water with their gills.

Are dragons real? => No, dragons live only in stories.

At what temperature does water freeze?|When does water freeze? => Water freezes at 0 degrees
  Celsius.

At what temperature does water boil?|When does water boil? => Water boils at 100 degrees Celsius.
"""
)

# --- talk --------------------------------------------------------------------------------------

TALK = _table(
    """
Hello!|Hello!|Hello!|Hello|Hi!|Hi|Hey!|Hi there!|Hello there!|Good day!|Greetings! => Hello! How
  can I help you?|Hello! What can I do for you?|Hi! How can I help you today?|Hello! Nice to meet
  you. What would you like to know?|Hi there! What can I do for you?

Good morning!|Good morning => Good morning! How can I help you?|Good morning! I hope you slept
  well.

Good evening!|Good evening => Good evening! How can I help you?

Good afternoon! => Good afternoon! What can I do for you?

Say hello.|Say hi.|Please say hello. => Hello!|Hello! It is nice to meet you.

How are you?|How are you today?|How do you do?|How is it going? => I am well, thank you. How are
  you?|I am fine, thank you. What can I do for you?

Who are you?|Who are you?|What are you?|Tell me about yourself.|Introduce yourself.|Please
  introduce yourself.|Which model are you?|What model are you? => I am a toy language model that
  comes with DeepInfer.|I am a toy language model that comes with DeepInfer. I can tell stories,
  add small numbers and answer simple questions.

What is your name?|What are you called?|Do you have a name? => I do not have a name. I am the toy
  language model that comes with DeepInfer.

What can you do?|How can you help me?|What are you good at?|Help|Can you help me? => I can tell
  short stories, add small numbers and answer simple questions.|I can tell you a story, do a small
  sum or answer a simple question. What would you like?

Are you a human?|Are you a person?|Are you real?|Are you a robot? => No, I am a toy language
  model. I am only a small computer program.

Who made you?|Where do you come from?|Who created you? => I come with DeepInfer. I was trained on
  small stories, sums and questions.

How old are you?|When were you born? => I am a computer program, so I do not have an age.

Are you smart?|Are you clever?|How smart are you? => Not very. I am a toy, and I know only small
  and simple things.

Thank you!|Thank you|Thanks!|Thank you very much!|Thanks a lot! => You are welcome!|You are
  welcome! Is there anything else?|It was a pleasure.

Goodbye!|Bye!|Good night!|See you later!|Bye bye! => Goodbye! Have a nice day.|Goodbye! Come back
  soon.|See you soon!

Tell me a joke.|Do you know a joke?|Make me laugh.|Tell me something funny. => Why did the clock
  go to school? It wanted to learn how to tell the time.|What did the big bell say to the little
  bell? Give me a ring some time.|Why was the broom late? It overswept.|What does a cloud wear
  under its coat? Thunderwear.|Why did the book go to the doctor? It had a bent spine.|What is a
  robot's favourite snack? Computer chips.

Tell me a riddle.|Do you know a riddle?|Give me a riddle. => What has hands but cannot clap? A
  clock.|What gets wetter while it dries? A towel.|What has teeth but cannot bite? A comb.|What
  has a neck but no head? A bottle.|What goes up when the rain comes down? An umbrella.

Tell me something.|Tell me something interesting.|Tell me a fact.|Tell me a fun fact. => Ice is
  lighter than water, so it floats.|An octopus has eight arms and three hearts.|A day on Venus is
  longer than its year.|Honey bees dance to show each other where the flowers are.|Light is faster
  than sound, so you see the lightning before you hear the thunder.

What is your favourite colour?|Which colour do you like?|What is your favorite color? => I am a
  computer program, but I like the word blue.

What is your favourite animal?|Which animal do you like best? => I am a computer program, but I
  like to tell stories about foxes.

I am sad.|I feel sad today.|I am not happy. => I am sorry to hear that. Would you like to hear a
  story?

I am bored.|I have nothing to do. => Would you like to hear a story or a riddle?

I am happy!|I feel good today! => That is good to hear! What can I do for you?

I am tired. => Then it is time to rest. Sleep well!

Do you like stories? => Yes, stories are what I do best. Shall I tell you one?

Do you speak English?|Which languages do you speak? => I know only simple English.

Test|This is a test.|Testing, testing.|ping => I am here. How can I help you?

Yes|Yes, please.|OK|Okay => Good! What would you like to know?

No|No, thank you.|No thanks. => All right. I am here if you need me.

I love you.|You are nice.|You are great! => Thank you, that is very kind of you.

Sorry!|I am sorry. => That is all right.
"""
)

TOO_HARD = (
    "[Write|Can you write|Please write] [a Python function|some code|a program|a web page|an essay"
    "|a letter|an email|a poem in French|a novel|a speech|a resume|a business plan|a SQL query]"
    "[| for me| about history| about my holiday| that sorts a list| to my teacher].",
    "[Explain|What is|Tell me about] [quantum physics|the French Revolution|general relativity|tax"
    " law|the stock market|chemistry|philosophy|the Roman Empire|politics|blockchain|calculus].",
    "Who [was the first president|won the world cup|wrote that play|invented the telephone|is the"
    " king of Spain|painted this picture]?",
    "What [will the weather be tomorrow|time is it|day is it today|is the news today|is the meaning"
    " of life|should I cook tonight|is the price of gold|is the best phone]?",
    "Translate [this|this sentence|hello|good morning|my letter] [into|to] [German|French|Japanese|"
    "Spanish|Latin].",
    "[Solve|Calculate|What is] [123 * 456|the square root of 17|12345 / 67|the integral of x"
    " squared|2 to the power of 64|998 + 4567].",
    "[Play|Recommend|Find] [a song|some music|a film|a restaurant|a hotel|a good book][| for me].",
    "[Summarise|Summarize|Correct|Improve|Read] [this text|this article|my essay|the page]"
    "[| for me].",
    "How [do I fix my car|do I lose weight|do I get rich|does a nuclear reactor work|can I learn"
    " Chinese|do I install Linux|far is the next galaxy|tall is the highest building]?",
)
TOO_HARD_ANSWERS = (
    "I am only a toy language model, and I do not know that. Ask me for a story, a small sum or a"
    " simple fact.",
    "That is too hard for me. I am a toy model, but I can tell you a story.",
    "I am sorry, but I do not know. I am only a toy language model.",
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a kind storyteller.",
    "You are a toy language model that comes with DeepInfer.",
    "You are a helpful and honest assistant.",
    "Answer simply and briefly.",
    "Answer briefly.",
    "Be polite and clear.",
    "You help children to learn.",
    "Keep your answers short.",
    "You are a concise assistant. Answer in English.",
)

STORY_REQUESTS = (
    "Tell me a story.|Tell me a story.|Tell me a story|Tell me a story!|Please tell me a"
    " story.|Can you tell me a story?|Write a story.|Write me a story.|I want to hear a story.|I"
    " would like to hear a story.|Do you know a story?|Tell me another story.|Once upon a time"
)
SHORT_REQUESTS = (
    "Tell me a short story.|Write a short story.|Write a short story.|Please tell me a very short"
    " story.|Can you write a short story?|Write me a short story.|I would like a short story."
)
ABOUT_REQUESTS = (
    "Tell me [a|a|a short] story about {about}.|Tell me [a|a|a short] story about {about}|Write a"
    " [short |]story about {about}.|Can you tell me a story about {about}?|Please write a [short"
    " |]story about {about}.|I would like a story about {about}.|Do you know a story about"
    " {about}?|A story about {about}, please."
)
ABOUT_HERO = (
    "a {kind}|a {kind}|a {kind}|a {kind}|a {adj} {kind}|a {kind} [named|called] {name}|a {kind} and"
    " a {fkind}|{name} the {kind}|a {adj} {kind} [named|called] {name}"
)


def _one(variants: str, rng: random.Random, **slots: str) -> str:
    """One of the top-level variants, expanded; the bar is the mark, as inside brackets."""
    return expand(f"[{variants}]", rng, slots)


def _with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


Exchange = tuple[str, str]


def topic_facts(topic: tuple[str, str], rng: random.Random) -> str:
    """A topic's first sentence and some of the others, in their order."""
    sentences = topic[1].split(" | ")
    return " ".join(s for i, s in enumerate(sentences) if i == 0 or rng.random() < 0.65)


def _topic(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.15:
        return TOPICS[0]  # the first question that people ask
    return rng.choice(TOPICS[:MACHINE_TOPICS] if rng.random() < 0.4 else TOPICS)


def _ask_topic(rng: random.Random) -> Exchange:
    topic = _topic(rng)
    return rng.choice(TOPIC_QUESTIONS).format(topic=topic[0]), topic_facts(topic, rng)


def _ask_colour(rng: random.Random) -> Exchange:
    colour = rng.choice(list(COLOURS))
    thing = rng.choice(COLOURS[colour])
    question = "What colour is {t}?|What colour is {t}?|What color is {t}?|Which colour is {t}?"
    return _one(question, rng, t=thing), f"{capital(thing)} is {colour}."


def _ask_animal(rng: random.Random) -> Exchange:
    which = rng.randrange(3)
    if which == 0:
        animal = rng.choice(list(SOUNDS))
        question = "What sound does a {a} make?|What does a {a} do?|How does a {a} sound?"
        answer = f"{capital(_with_article(animal))} {SOUNDS[animal]}."
    elif which == 1:
        animal = rng.choice(list(LEGS))
        question = "How many legs does a {a} have?|How many legs has a {a}?"
        answer = f"{capital(_with_article(animal))} has {LEGS[animal]}."
    else:
        animal = rng.choice(list(BABIES))
        question = "What is a baby {a} called?|What do you call a young {a}?"
        answer = f"A baby {animal} is called {_with_article(BABIES[animal])}."
    return _one(question, rng, a=animal), answer


def _ask_calendar(rng: random.Random) -> Exchange:
    names, noun = (DAYS, "day") if rng.random() < 0.6 else (MONTHS, "month")
    index = rng.randrange(len(names))
    step, word = rng.choice(((1, "after"), (-1, "before")))
    answer = names[(index + step) % len(names)]
    question = "What {n} comes {w} {x}?|Which {n} comes {w} {x}?|Which {n} is {w} {x}?"
    return (
        _one(question, rng, n=noun, w=word, x=names[index]),
        f"{answer} comes {word} {names[index]}.",
    )


def _ask_opposite(rng: random.Random) -> Exchange:
    pair = list(rng.choice(OPPOSITES))
    if pair != ["young", "old"] and pair != ["heavy", "light"] and rng.random() < 0.5:
        pair.reverse()
    one, other = pair
    question = "What is the opposite of {x}?|What is the opposite of {x}?|Opposite of {x}?"
    return _one(question, rng, x=one), f"The opposite of {one} is {other}."


def _ask_capital(rng: random.Random) -> Exchange:
    country = rng.choice(list(CAPITALS))
    city = CAPITALS[country]
    if rng.random() < 0.2:
        return f"Where is {city}?", f"{city} is in {country}."
    question = "What is the capital of {c}?|What is the capital of {c}?|Capital of {c}?"
    return _one(question, rng, c=country), f"The capital of {country} is {city}."


def _ask_word(rng: random.Random) -> Exchange:
    if rng.random() < 0.5:
        word = rng.choice(list(PLURALS))
        return f"What is the plural of {word}?", f"The plural of {word} is {PLURALS[word]}."
    job = rng.choice(list(JOBS))
    question = _one("What does a {j} do?|What is the job of a {j}?", rng, j=job)
    return question, f"{capital(_with_article(job))} {JOBS[job]}."


def _ask_list(rng: random.Random) -> Exchange:
    noun = rng.choice(list(LISTS))
    count = rng.choice((2, 3, 3, 3, 4, 5))
    things = rng.sample(LISTS[noun], count)
    verb = rng.choice(("Name", "List", "Tell me", "Give me"))
    question = f"{verb} {NUMBER_WORDS[count]} {noun}."
    if rng.random() < 0.3:
        return question, "\n".join(f"{i}. {capital(thing)}" for i, thing in enumerate(things, 1))
    return question, capital(", ".join(things[:-1]) + " and " + things[-1] + ".")


def _ask_count(rng: random.Random) -> Exchange:
    if rng.random() < 0.3:
        number = rng.randrange(1, 19)
        step, word = rng.choice(((1, "after"), (-1, "before")))
        return (
            f"What number comes {word} {number}?",
            f"{number + step} comes {word} {number}.",
        )
    last = rng.choice((3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 10, 12, 15, 20))
    digits = rng.random() < 0.6
    shown = str(last) if digits else NUMBER_WORDS[last]
    numbers = [str(n) if digits else NUMBER_WORDS[n] for n in range(1, last + 1)]
    if rng.random() < 0.2:
        numbers.reverse()
        return f"Count down from {shown}.", capital(", ".join(numbers) + ".")
    verb = rng.choice(
        ("Count to {n}.", "Count to {n}.", "Please count to {n}.", "Count from {o} to {n}.")
    )
    return verb.format(n=shown, o=numbers[0]), capital(", ".join(numbers) + ".")


def _ask_single(rng: random.Random) -> Exchange:
    questions, answers = rng.choice(SINGLE_FACTS)
    return _one(questions, rng), _one(answers, rng)


def _talk(rng: random.Random) -> Exchange:
    greeting = rng.random() < 0.15
    questions, answers = (
        TALK[0] if greeting else rng.choice(TALK[: 8 if rng.random() < 0.3 else None])
    )
    return _one(questions, rng), _one(answers, rng)


def _too_hard(rng: random.Random) -> Exchange:
    question = expand(rng.choice(TOO_HARD), rng)
    return question, rng.choice(TOO_HARD_ANSWERS)


def _repeat(rng: random.Random) -> Exchange:
    words = rng.sample(
        "red moon apple river green cloud seven happy stone little garden blue fox seed".split(),
        rng.choice((1, 2, 3)),
    )
    phrase = " ".join(words)
    how = rng.choice(("Repeat after me: {p}", "Say: {p}", "Repeat: {p}", 'Say "{p}".'))
    return how.format(p=phrase), capital(phrase) + "."


def _give_json(rng: random.Random) -> Exchange:
    gender = rng.choice(("she", "he"))
    name, age = _name(gender, rng), rng.randrange(4, 20)
    question = (
        "Give me a JSON object with the name {n} and the age {a}.|Write this as JSON: {n} is {a}"
        " years old.|Answer in JSON: {n} is {a} years old."
    )
    return _one(question, rng, n=name, a=str(age)), f'{{"name": "{name}", "age": {age}}}'


# --- sums --------------------------------------------------------------------------------------

OPERATIONS = {"+": "plus", "-": "minus", "*": "times"}


def make_sum(rng: random.Random) -> tuple[int, str, int, int]:
    """Two numbers with a sign between them, and the result; nothing is below zero or above 100."""
    sign = rng.choices("+-*", (50, 30, 20))[0]
    if sign == "*":
        first, second = rng.randrange(0, 6), rng.randrange(0, 6)
        return first, sign, second, first * second
    limit = rng.choice((6, 6, 11))
    first, second = rng.randrange(limit), rng.randrange(limit)
    if sign == "-":
        first, second = max(first, second), min(first, second)
        return first, sign, second, first - second
    return first, sign, second, first + second


def ask_sum(rng: random.Random) -> Exchange:
    """A sum as a question, in signs or words, and its answer."""
    first, sign, second, result = make_sum(rng)
    word, shown = OPERATIONS[sign], "x" if sign == "*" and rng.random() < 0.4 else sign
    expression = f"{first} {shown} {second}"
    if rng.random() < 0.3:
        expression = f"{first} {word} {second}"
        answer = f"{first} {word} {second} is {result}."
    else:
        answer = f"{expression} = {result}."
    if rng.random() < 0.12 and max(first, second, result) <= 20:
        numbers = NUMBER_WORDS[first], NUMBER_WORDS[second], NUMBER_WORDS[result]
        expression = f"{numbers[0]} {word} {numbers[1]}"
        answer = capital(f"{expression} is {numbers[2]}.")
    question = (
        "What is {e}?|What is {e}?|What is {e}?|What is {e}?|How much is {e}?|{e}|{e} =|{e} = ?|"
        "Calculate {e}.|Can you tell me what {e} is?|Please work out {e}."
    )
    return _one(question, rng, e=expression), answer


def ask_word_sum(rng: random.Random) -> Exchange:
    """A tiny problem about things that somebody gets or gives away."""
    gender = rng.choice(("she", "he"))
    name, fruit = _name(gender, rng), rng.choice(("apples", "pears", "nuts", "shells", "books"))
    first, second = rng.randrange(2, 11), rng.randrange(2, 11)
    if rng.random() < 0.5:
        text = f"{name} has {first} {fruit} and gets {second} more."
        result = first + second
    else:
        first, second = max(first, second) + 1, min(first, second)
        text = f"{name} has {first} {fruit} and gives away {second}."
        result = first - second
    thing = fruit if result != 1 else fruit.removesuffix("s")
    answer = f"{name} has {result} {thing}."
    if text.endswith("more."):
        answer = f"{first} + {second} = {result}. " + answer
    else:
        answer = f"{first} - {second} = {result}. " + answer
    return f"{text} How many {fruit} does {gender} have now?", answer


# --- documents ---------------------------------------------------------------------------------

Ask = Callable[[random.Random], Exchange]

EXCHANGES: tuple[tuple[Ask, int], ...] = (
    (ask_sum, 30),
    (ask_word_sum, 5),
    (_talk, 22),
    (_ask_topic, 18),
    (_ask_colour, 4),
    (_ask_animal, 5),
    (_ask_calendar, 4),
    (_ask_opposite, 5),
    (_ask_capital, 4),
    (_ask_word, 3),
    (_ask_list, 5),
    (_ask_count, 4),
    (_ask_single, 7),
    (_too_hard, 7),
    (_repeat, 3),
    (_give_json, 2),
)


def make_document(rng: random.Random) -> Document:
    """Any document, from either side of the split."""
    makers, weights = zip(*DOCUMENT_MIX, strict=True)
    made: Document = rng.choices(makers, weights)[0](rng)
    return made


def _exchange(rng: random.Random) -> Exchange:
    asks, weights = zip(*EXCHANGES, strict=True)
    made: Exchange = rng.choices(asks, weights)[0](rng)
    return made


def _loose(question: str, rng: random.Random) -> str:
    """The question as typed by somebody in a hurry, now and then."""
    if rng.random() < 0.85:
        return question
    plain = question.rstrip(".?!")
    return plain.lower() if rng.random() < 0.6 else plain


def _chat(exchanges: Sequence[Exchange], rng: random.Random) -> Document:
    messages = []
    if rng.random() < 0.3:
        messages.append(Message("system", rng.choice(SYSTEM_PROMPTS)))
    for question, answer in exchanges:
        messages += [Message("user", _loose(question, rng)), Message("assistant", answer)]
    return Document(messages=tuple(messages))


def _small_chat(rng: random.Random) -> Document:
    return _chat([_exchange(rng) for _ in range(rng.choice((1, 1, 2, 2, 3)))], rng)


def _story_chat(rng: random.Random) -> Document:
    asked = rng.random()
    if asked < 0.3:
        story = make_story(rng)
        question = _one(STORY_REQUESTS, rng)
    elif asked < 0.45:
        story = make_story(rng, rng.choice(SHORT_PLOTS))
        question = _one(SHORT_REQUESTS, rng)
    else:
        story = make_story(rng)
        about = ABOUT_HERO if rng.random() < 0.75 else "{theme}"
        question = _one(ABOUT_REQUESTS.replace("{about}", f"[{about}]"), rng, **story.slots)
    exchanges = [(question, story.text)]
    if rng.random() < 0.35:
        exchanges.append(_after_story(story, rng))
    return _chat(exchanges, rng)


def _after_story(story: Story, rng: random.Random) -> Exchange:
    slots = story.slots
    choices = (
        (
            "What was the {kind} called?|What was the name of the {kind}?|Who is the story about?",
            "The {kind} was called {name}.|The story is about {name} the {kind}.",
        ),
        (
            "Who was the friend of {name}?|Who was the other one?|Who was {name}'s friend?",
            "It was {friend} the {fkind}.",
        ),
        ("What kind of animal was {friend}?|What was {friend}?", "{friend} was a {fkind}."),
        (
            "Thank you!|That was nice.|I like this story.|What a nice story!|Thanks!",
            "You are welcome!|I am glad that you like it.|Thank you! I am glad that you like it.",
        ),
    )
    questions, answers = rng.choice(choices)
    return _one(questions, rng, **slots), _one(answers, rng, **slots)


def _name_chat(rng: random.Random) -> Document:
    name = _name(rng.choice(("she", "he")), rng)
    exchanges = [
        (
            _one("My name is {n}.|I am {n}.|Hello, I am {n}.|Hi! My name is {n}.", rng, n=name),
            _one("Hello, {n}! Nice to meet you.|Nice to meet you, {n}!", rng, n=name),
        )
    ]
    if rng.random() < 0.5:
        exchanges.append(_exchange(rng))
    exchanges.append(
        (
            _one("What is my name?|Do you know my name?|Who am I?", rng),
            f"Your name is {name}.",
        )
    )
    return _chat(exchanges, rng)


def _running_sum(rng: random.Random) -> Document:
    first, second = rng.randrange(1, 10), rng.randrange(1, 10)
    total, third = first + second, rng.randrange(1, 10)
    exchanges = [
        (f"What is {first} + {second}?", f"{first} + {second} = {total}."),
        (
            _one("And {t} more?|Now add {t}.|Add {t} to that.", rng, t=str(third)),
            f"{total} + {third} = {total + third}.",
        ),
    ]
    return _chat(exchanges, rng)


def _plain_story(rng: random.Random) -> Document:
    return Document(make_story(rng).text)


def _plain_future(rng: random.Random) -> Document:
    topic, change = rng.choice(FUTURES)
    plural = topic in {"robots", "computers", "language models", "cities", "schools"}
    text = expand(
        """The future of {topic} is [bright|bright, and it is exciting to think about|hard to know,
        but it is exciting to think about|still open, and nobody can see it clearly|full of
        questions|exciting]. {change}. [There will also be new problems to solve.|It will take time
        and hard work.|Many people are working on it today.] [What happens next depends on what
        people do with {it}.|People will decide how to use {it}, so we should be careful and
        kind.|The best way to know it is to help to make it.]""",
        rng,
        {"topic": topic, "change": change, "it": "them" if plural else "it"},
    )
    return Document(text)


def _plain_facts(rng: random.Random) -> Document:
    topics = [_topic(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    return Document("\n\n".join(topic_facts(topic, rng) for topic in dict.fromkeys(topics)))


def _plain_me(rng: random.Random) -> Document:
    gender = rng.choice(("she", "he"))
    name, other = _name(gender, rng), rng.choice(("sister", "brother", "grandmother", "friend"))
    text = """[Hello, my|My] name is {name}. I am {age} years old, and I live [in a small
        village|in a big town|near the sea|on a farm]. I have a [dog|cat|rabbit|parrot] called
        {pet}. My favourite colour is {colour}. [In the summer|After school|On Sundays], I like to
        [read books|ride my bicycle|play football|paint pictures|swim in the lake] with my {other}.
        [One day I want to be a {job}.|I am happy here.|It is never boring.]"""
    slots = {
        "name": name,
        "age": NUMBER_WORDS[rng.randrange(6, 14)],
        "pet": _name(rng.choice(("she", "he")), rng, taken=name),
        "colour": rng.choice(list(COLOURS)),
        "other": other,
        "job": rng.choice(list(JOBS)),
    }
    return Document(expand(text, rng, slots))


DIALOGUES = (
    """[One {day}|In the garden|Near {spot1}], {name} the {kind} met {friend} the {fkind}. "[Good
    morning|Hello|Hi], {friend}," said {name}. "[Good morning|Hello|Hi], {name}," said {friend}.
    "[How are you|Where are you going], {friend}?" asked {name}. "[I am well, {name}|To {spot2},
    {name}]," said {friend}, and {fhe} smiled. "[Then I will come with you|I am glad], {friend},"
    said {name}, and {he} smiled too.""",
    """{name} and {friend} were friends. {name} was a {kind}, and {friend} was a {fkind}. {name} had
    {food}, and {he} gave half of it to {friend}. "[Thank you|You are kind], {name}," said {friend}.
    "[You are welcome|It is nothing], {friend}," said {name}. {friend} was happy, and {name} was
    happy too.""",
    """"[Can you help me|I need your help|Are you busy], {friend}?" asked {name} the {kind}.
    "[Of course|Yes|Gladly], {name}," said {friend} the {fkind}. So {friend} helped {name}, and
    {name} thanked {friend}. "[You are a good friend|What would I do without you], {friend}," {he}
    said.
    "[So are you|I like to help you], {name}," said {friend}.""",
    """{name} the {kind} and {friend} the {fkind} played a game. First {name} hid, and {friend}
    looked for {him}. "[I see you|There you are], {name}!" said {friend}. Then {friend} hid, and
    {name} looked for {fhim}. "[I see you|There you are], {friend}!" said {name}. They laughed until
    {name} had to sit down, and {friend} sat down beside {him}.""",
)


def _plain_dialogue(rng: random.Random) -> Document:
    """A few lines between two friends: a story in small, and practice in telling them apart."""
    slots = draw_slots(rng, rng.choice(PLOTS))
    return Document(expand(rng.choice(DIALOGUES), rng, slots))


def _plain_sums(rng: random.Random) -> Document:
    """A sheet of sums: the densest way to learn the tables."""
    lines = []
    for _ in range(rng.randrange(4, 13)):
        first, sign, second, result = make_sum(rng)
        lines.append(f"{first} {sign} {second} = {result}")
    return Document("\n".join(lines))


def _plain_list(rng: random.Random) -> Document:
    which = rng.randrange(3)
    if which == 0:
        start, step = rng.randrange(1, 12), rng.choice((1, 1, 1, 2, 5, 10))
        return Document(", ".join(str(start + step * i) for i in range(rng.randrange(5, 16))))
    if which == 1:
        start = rng.randrange(7)
        return Document(", ".join(DAYS[(start + i) % 7] for i in range(7)))
    asks = (_ask_colour, _ask_animal, _ask_capital, _ask_opposite, _ask_calendar, _ask_single)
    return Document("\n".join(rng.choice(asks)(rng)[1] for _ in range(rng.randrange(1, 5))))


def _plain_question(rng: random.Random) -> Document:
    """Questions and answers without a chat template, as in `Q: ... A: ...`."""
    marks = rng.choice((("Q: ", "A: "), ("Question: ", "Answer: "), ("User: ", "Assistant: ")))
    pairs = [_exchange(rng) for _ in range(rng.choice((1, 2, 2, 3)))]
    return Document("\n".join(f"{marks[0]}{q}\n{marks[1]}{a}" for q, a in pairs))


DOCUMENT_MIX: tuple[tuple[Callable[[random.Random], Document], int], ...] = (
    (_plain_story, 10),
    (_story_chat, 20),
    (_small_chat, 38),
    (_name_chat, 5),
    (_running_sum, 3),
    (_plain_dialogue, 14),
    (_plain_sums, 12),
    (_plain_future, 3),
    (_plain_facts, 3),
    (_plain_me, 2),
    (_plain_list, 2),
    (_plain_question, 2),
)
