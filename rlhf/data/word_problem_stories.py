"""The texts of the generated word problems: who, what, and what can happen. Every number in a text is 2 or more, so
plural forms are always right.

`{b}`, `{c}`, `{k}` are numbers, `{p}` groups of `{q}` each, `{times}` is "twice" or "3 times"; what a kind of sentence
does to the running value is in `rlhf.data.word_problems`. Other fields are words of the story; `{place}` and its like
are drawn without repetition within a problem.
"""

from collections.abc import Mapping
from dataclasses import dataclass

NAMES = (
    "Amira", "Ben", "Chloe", "Diego", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kofi", "Lena", "Mei", "Noah",
    "Olga", "Priya", "Quinn", "Rosa", "Samir", "Tara", "Umar", "Vera", "Wes", "Yuki", "Zoe",
)  # fmt: skip

Sentences = tuple[tuple[str, str], ...]  # (kind, text)


@dataclass(frozen=True)
class Story:
    """`openings` give the first value; `events` change it; a closing asks for it, or for something made of it.

    `cap` is the largest value that is believable. `words` are drawn once a problem, `places` anew for each use.
    """

    openings: Sentences
    events: Sentences
    closings: Sentences
    asides: tuple[str, ...]
    words: Mapping[str, tuple[str, ...]]
    places: Mapping[str, tuple[str, ...]]
    cap: int = 1000


COLLECTION = Story(
    openings=(
        ("given", "{name} has {b} {things}."),
        ("groups", "{name} has {p} boxes with {q} {things} in each box."),
    ),
    events=(
        ("add", "{name} finds {b} more {things}."),
        ("add", "An aunt sends {name} {b} more {things}."),
        ("add", "At the flea market, {name} buys {b} {things}."),
        ("add_groups", "{name} buys {p} packs of {q} {things} each."),
        ("take", "{name} gives {b} {things} to {friend}."),
        ("take", "{name} loses {b} {things} in the park."),
        ("take_groups", "{name} gives {q} {things} to each of {p} classmates."),
        ("times", "After a swap meeting, {name} has {times} as many {things} as before it."),
        ("share", "{name} splits the {things} equally among {k} bags and keeps only one of the bags."),
        ("half", "{name} sells half of the {things}."),
    ),
    closings=(
        ("ask", "How many {things} does {name} have now?"),
        ("share", "{name} puts the {things} into {k} albums, the same number in each. How many are in each album?"),
    ),
    asides=("{name} is {d} years old.", "{friend} has {d} old comics.", "The flea market is {d} kilometres away."),
    words={"things": ("stickers", "stamps", "postcards", "badges", "bookmarks", "football cards")},
    places={},
)

BAKERY = Story(
    openings=(
        ("given", "A bakery has {b} {things} in the shop."),
        ("groups", "A bakery bakes {p} trays with {q} {things} on each tray."),
    ),
    events=(
        ("add", "The baker brings {b} more {things} from the oven."),
        ("add", "Another bakery sends over {b} {things}."),
        ("add_groups", "The baker bakes {p} more trays with {q} {things} on each tray."),
        ("take", "A hotel picks up {b} {things}."),
        ("take", "The baker throws away {b} burnt {things}."),
        ("take", "A school takes {b} {things} for its summer party."),
        ("take_groups", "Then {p} customers buy {q} {things} each."),
        ("half", "During the next hour, half of the {things} are sold."),
        ("times", "Then the baker bakes until there are {times} as many {things} as before."),
    ),
    closings=(
        ("ask", "How many {things} does the bakery have then?"),
        ("share", "The {things} that are left are packed into bags of {k}. How many bags are needed?"),
        ("price", "The {things} that are left are sold for {k} dollars each. How many dollars does the bakery get?"),
    ),
    asides=("The bakery opens at {d} in the morning.", "A large loaf of bread costs {d} dollars.",
            "The baker has worked there for {d} years."),
    words={"things": ("rolls", "muffins", "pretzels", "buns", "cookies", "bagels")},
    places={},
)  # fmt: skip

BUS = Story(
    openings=(
        ("given", "A {vehicle} sets off with {b} passengers."),
        ("groups", "A {vehicle} sets off with {p} groups of {q} passengers each."),
    ),
    events=(
        ("add", "At the {place}, {b} people get on."),
        ("add", "At the {place}, another {b} people get on."),
        ("take", "At the {place}, {b} people get off."),
        ("take", "At the {place}, {b} passengers leave."),
        ("swap", "At the {place}, {b} people get off and {c} people get on."),
        ("add_groups", "At the {place}, {p} groups of {q} people each get on."),
        ("half", "At the {place}, half of the passengers get off."),
        ("times", "At the {place}, so many people get on that there are {times} as many passengers as before."),
    ),
    closings=(
        ("ask", "How many passengers are on the {vehicle} then?"),
        ("price", "Each passenger who is then on the {vehicle} pays {k} dollars. How many dollars is that in all?"),
    ),
    asides=("The {vehicle} is {d} years old.", "The driver started work {d} hours ago.",
            "The whole line is {d} kilometres long."),
    words={"vehicle": ("bus", "tram", "night bus")},
    places={"place": ("market", "hospital", "stadium", "station", "museum", "town hall", "university", "zoo",
                      "cinema", "old bridge")},
    cap=150,
)  # fmt: skip

MONEY = Story(
    openings=(
        ("given", "{name} has {b} dollars."),
        ("groups", "{name} saves {q} dollars a week for {p} weeks."),
    ),
    events=(
        ("take_groups", "{name} buys {p} {goods} for {q} dollars each."),
        ("take", "{name} pays {b} dollars for a {service}."),
        ("add", "{name} earns {b} dollars by {work}."),
        ("add_groups", "{name} works {p} hours in a {shop} for {q} dollars an hour."),
        ("add", "{friend} pays back {b} dollars that {name} had lent."),
        ("half", "{name} spends half of the money on a present."),
        ("times", "An aunt adds so much that {name} has {times} as much money as before."),
    ),
    closings=(
        ("ask", "How many dollars does {name} have in the end?"),
        ("share", "{name} spends all of it on tickets for {k} dollars each. How many tickets does {name} get?"),
    ),
    asides=("{name} has {d} cousins.", "{name} gets up at {d} in the morning.", "{friend} lives on floor {d}."),
    words={"shop": ("bookshop", "café", "garage")},
    places={
        "goods": ("books", "caps", "plants", "mugs", "puzzles", "scarves", "candles"),
        "service": ("haircut", "taxi ride", "helmet", "concert ticket", "backpack", "bicycle repair"),
        "work": ("washing cars", "walking dogs", "mowing lawns", "selling lemonade", "painting a fence"),
    },
)

FARM = Story(
    openings=(
        ("given", "A farmer collects {b} eggs."),
        ("groups", "A farmer has {p} hens and collects {q} eggs from each of them."),
    ),
    events=(
        ("add", "A neighbour brings {b} eggs."),
        ("add", "The farmer finds another {b} eggs in the barn."),
        ("add_groups", "The farmer's brother brings {p} baskets with {q} eggs in each of them."),
        ("take", "The family eats {b} eggs."),
        ("take", "On the way across the yard, {b} eggs break."),
        ("take", "A guest house buys {b} eggs."),
        ("take_groups", "Then {p} neighbours take {q} eggs each."),
        ("half", "Half of the eggs go to a school kitchen."),
        ("times", "After the next round, the farmer has {times} as many eggs as before."),
    ),
    closings=(
        ("ask", "How many eggs does the farmer have then?"),
        ("share", "The farmer packs the eggs into cartons of {k}. How many cartons does the farmer fill?"),
        ("share_price", "The farmer packs the eggs into cartons of {k} and sells each carton for {c} dollars. How many "
                        "dollars does the farmer get?"),
    ),
    asides=("The farmer also has {d} sheep.", "The barn was built {d} years ago.", "The farm has {d} apple trees."),
    words={},
    places={},
)  # fmt: skip

COMPARISON = Story(
    openings=(("given", "{name} has {b} {things}."),),
    events=(
        ("add", "{next} has {b} more {things} than {name}."),
        ("take", "{next} has {b} fewer {things} than {name}."),
        ("times", "{next} has {times} as many {things} as {name}."),
        ("half", "{next} has half as many {things} as {name}."),
        ("share", "{name} has {k} times as many {things} as {next}."),
    ),
    closings=(
        ("ask", "How many {things} does {name} have?"),
        ("plus_first", "How many {things} do {first} and {name} have together?"),
        ("minus_first", "How many more {things} does {name} have than {first}?"),
    ),
    asides=("{first} is {d} years old.", "{first} lives {d} kilometres from school."),
    words={"things": ("marbles", "shells", "books", "pencils", "beads", "photos")},
    places={},
)

TRIP = Story(
    openings=(
        ("given", "{name} travels {b} kilometres on the first day of a trip."),
        ("groups", "{name} cycles {q} kilometres a day for {p} days."),
    ),
    events=(
        ("add", "After that, {name} walks {b} kilometres {path}."),
        ("add", "Then {name} goes {b} kilometres {path}."),
        ("add_groups", "Then {name} travels {q} kilometres a day by {means} for {p} days."),
        ("add_groups", "After a rest, {name} hikes {q} kilometres a day for {p} days."),
    ),
    closings=(
        ("ask", "How many kilometres does {name} travel in all?"),
        ("from", "The whole way is {b} kilometres long. How many kilometres are still ahead of {name}?"),
        ("price", "{name} makes this whole trip {k} times. How many kilometres is that in all?"),
        ("times", "{friend} travels {times} as far as {name} does in all. How many kilometres does {friend} travel?"),
    ),
    asides=("{name} carries {d} maps.", "{name} sleeps {d} hours a night.", "{friend} stays at home with {d} cats."),
    words={},
    places={
        "means": ("boat", "train", "canoe", "bus"),
        "path": ("to a lake", "to a castle", "along a river", "to a waterfall", "through a forest", "to a village",
                 "along the coast", "to a campsite"),
    },
)  # fmt: skip

LIBRARY = Story(
    openings=(
        ("given", "There are {b} {books} in a library."),
        ("groups", "A library has {p} shelves with {q} {books} on each shelf."),
    ),
    events=(
        ("take", "Readers borrow {b} {books}."),
        ("take", "The library gives away {b} worn {books}."),
        ("take_groups", "Then {p} classes borrow {q} {books} each."),
        ("add", "Readers bring back {b} {books}."),
        ("add", "A publisher donates {b} {books}."),
        ("add_groups", "The town sends {p} boxes with {q} {books} in each of them."),
        ("half", "Half of the {books} that are there move to a new branch."),
        ("times", "After a large donation, there are {times} as many {books} in the library as before."),
    ),
    closings=(
        ("ask", "How many {books} are in the library then?"),
        ("share", "They are put on {k} shelves, the same number on each. How many {books} are on each shelf?"),
    ),
    asides=("The library has {d} windows.", "The librarian has {d} assistants.", "The library closes at {d} o'clock."),
    words={"books": ("novels", "atlases", "comics", "picture books", "magazines")},
    places={},
)

TANK = Story(
    openings=(
        ("given", "There are {b} litres of water in a tank."),
        ("groups", "A pump fills an empty tank with {q} litres a minute for {p} minutes."),
    ),
    events=(
        ("add", "A truck brings {b} litres of water to the tank."),
        ("add", "Rain adds {b} litres to the tank."),
        ("add_groups", "A second pump adds {q} litres a minute for {p} minutes."),
        ("take", "The tank loses {b} litres through a leak."),
        ("take", "A gardener takes {b} litres for the flowers."),
        ("take_groups", "A gardener fills {p} cans of {q} litres each from the tank."),
        ("take_groups", "A hose takes out {q} litres a minute for {p} minutes."),
        ("half", "Half of the water in the tank is pumped into a pond."),
        ("times", "After a storm, there is {times} as much water in the tank as before."),
    ),
    closings=(
        ("ask", "How many litres of water are in the tank then?"),
        ("share", "All the water is then filled into barrels of {k} litres each. How many barrels are filled?"),
    ),
    asides=("The tank is {d} years old.", "The garden has {d} rose bushes.", "The pond is home to {d} frogs."),
    words={},
    places={},
)

WORKSHOP = Story(
    openings=(
        ("given", "A workshop has {b} {things} in stock."),
        ("groups", "A workshop makes {q} {things} an hour for {p} hours."),
    ),
    events=(
        ("add", "The night shift makes {b} more {things}."),
        ("add", "A partner delivers {b} {things}."),
        ("add_groups", "A second team makes {q} {things} an hour for {p} hours."),
        ("take", "An inspector finds {b} broken {things}, which are thrown away."),
        ("take", "A hotel buys {b} of the {things}."),
        ("take_groups", "The workshop sends {q} {things} to each of {p} shops."),
        ("half", "Half of the {things} are sold at a fair."),
        ("times", "After a busy week, there are {times} as many {things} in stock as before."),
    ),
    closings=(
        ("ask", "How many {things} does the workshop have then?"),
        ("price", "The workshop sells all of them for {k} dollars each. How many dollars does it get?"),
        ("share", "They are loaded into {k} vans, the same number in each. How many {things} are in each van?"),
    ),
    asides=("The workshop has {d} windows.", "The owner learned the trade {d} years ago.", "Lunch takes {d} minutes."),
    words={"things": ("chairs", "lamps", "kites", "clocks", "stools", "picture frames")},
    places={},
)

STORIES = (COLLECTION, BAKERY, BUS, MONEY, FARM, COMPARISON, TRIP, LIBRARY, TANK, WORKSHOP)
