"""Sentences to classify, by label. The words that decide are in [brackets]: the clue."""

from __future__ import annotations

from typing import Final

REVIEWS: Final = {
    "positive": (
        "The soup was [rich and warming], and the waiter made us laugh.",
        "I finished the novel in one night; it was [impossible to put down].",
        "Our room looked over the bay and [felt like a dream].",
        "The new headphones [sound wonderful] even on a noisy train.",
        "Grandad [beamed with joy] when he opened this jigsaw.",
        "Booking took a minute and the staff were [friendly and quick].",
        "This lamp is [worth every penny]; my desk has never looked better.",
        "The puppet show [delighted the whole family] from start to end.",
        "After two weeks the boots are still [comfortable and dry].",
        "A [charming little film] with a clever ending.",
        "The repair was done early, and the bike [rides beautifully].",
        "Simply the [best pancakes] in town, and the coffee is lovely too.",
    ),
    "negative": (
        "The kettle [leaked on the first day] and then stopped working.",
        "We waited an hour for a table, and the food was [cold and bland].",
        "The plot [made no sense], and I fell asleep halfway.",
        "My parcel arrived [crushed and two weeks late].",
        "The guide was [rude to the children] and skipped half the tour.",
        "This jacket [fell apart] after a single wash.",
        "What a [waste of money]; the game crashes every ten minutes.",
        "The hotel bed was lumpy and the corridor [smelled of smoke].",
        "I asked for help three times and [nobody answered].",
        "The singer was [out of tune] and the sound kept cutting out.",
        "Batteries lasted one day; I am [very disappointed].",
        "The paint [peeled within a week] and left stains on the floor.",
    ),
}

TOPICS: Final = {
    "sport": (
        "The striker [scored twice] before half-time.",
        "Fans cheered as the runners [crossed the finish line].",
        "The coach picked a new [goalkeeper] for Saturday.",
        "She won the final set of the [tennis match].",
        "Twelve riders fell in the last lap of the [cycle race].",
        "The [swimming team] broke the pool record again.",
        "A late [penalty] sent the cup tie into extra time.",
    ),
    "food": (
        "Let the [dough rise] for an hour in a warm kitchen.",
        "The stall sells [spicy noodles] and cold mango juice.",
        "Fry the [onions and garlic] until they turn golden.",
        "The baker adds [cinnamon and honey] to every bun.",
        "Fresh [basil and tomatoes] make this salad shine.",
        "Her grandmother's [lentil stew] simmers all afternoon.",
        "The menu offers [grilled fish] with lemon rice.",
    ),
    "music": (
        "The [violin solo] brought the audience to its feet.",
        "Their second [album] mixes jazz with folk songs.",
        "The choir [sang in four parts] under the dome.",
        "He tuned his [guitar] and waited for the drummer.",
        "A slow [melody] on the piano opens the concert.",
        "The band will [rehearse two new songs] on Friday.",
        "Her [trumpet] echoed through the empty hall.",
    ),
    "weather": (
        "Tonight [heavy rain] will move in from the west.",
        "Expect [bright sunshine] and a light breeze on the coast.",
        "A [thick fog] closed the mountain road this morning.",
        "A [strong wind] of 80 km per hour shook the harbour.",
        "Ten centimetres of [snow] fell on the hills.",
        "The [temperature] will drop below zero after sunset.",
        "Loud [thunderstorms] are likely in the afternoon.",
    ),
}

ANIMALS: Final = {
    "mammal": (
        "A dolphin breathes air and [feeds its young with milk].",
        "A fox is [covered in fur] and lives in a den.",
        "A bat flies at night and [gives milk to its pups].",
        "An elephant calf [drinks its mother's milk] for years.",
        "A mole digs tunnels and has [soft black fur].",
    ),
    "bird": (
        "A penguin cannot fly, yet it has [feathers and a beak].",
        "An owl has [soft feathers] and hunts mice in the dark.",
        "An ostrich runs fast and has [wings and feathers].",
        "A heron wades in ponds and has [a long beak and feathers].",
        "A robin builds a nest and is [covered in feathers].",
    ),
    "fish": (
        "A trout [breathes with gills] in cold streams.",
        "A shark has [fins and gills] and soft, bendy bones of cartilage.",
        "A seahorse looks odd, but it has [gills and small fins].",
        "A goldfish in its bowl has [scales, fins and gills].",
        "A salmon swims upriver and [breathes through its gills].",
    ),
    "insect": (
        "A ladybird has [six legs] and spotted wing cases.",
        "An ant carries leaves and walks on [six legs].",
        "A honeybee has [six legs], four wings and a sting.",
        "A grasshopper jumps far and has [six legs] and feelers.",
        "A butterfly has [six legs] and a body in three parts.",
    ),
    "reptile": (
        "A crocodile has [dry, scaly skin] and lays eggs on land.",
        "A tortoise has a shell and [dry scales] on its legs.",
        "A gecko climbs walls and has [dry, scaly skin].",
        "A cobra has no legs and is [covered in dry scales].",
        "An iguana basks in the sun to warm its [dry, scaly skin].",
    ),
}

MATTER: Final = {
    "solid": (
        "A brick [keeps its shape] wherever you put it.",
        "Ice in the freezer [keeps its own shape].",
        "A coin has [a fixed shape] and a fixed volume.",
        "A wooden spoon [keeps its shape] in hot soup.",
        "A salt crystal is hard and [keeps its shape].",
        "A glass marble [has a fixed shape] in any box.",
    ),
    "liquid": (
        "Milk [flows] and takes the shape of the jug.",
        "Olive oil [pours slowly] out of the bottle.",
        "Rain [runs down] the window into a bucket.",
        "Honey [flows off the spoon] in a long thread.",
        "Petrol [takes the shape of the tank] but keeps its volume.",
        "Juice [spills across the table] in a flat puddle.",
    ),
    "gas": (
        "Steam [spreads out to fill] the whole bathroom.",
        "Helium [fills every part] of the balloon.",
        "The vapour of a perfume [spreads through the room].",
        "The air in a tyre [can be squeezed] into less space.",
        "Oxygen let out of a tank [spreads out in all directions].",
        "Carbon dioxide leaves the drink and [spreads into the air].",
    ),
}

TENSES: Final = {
    "past": (
        "We [walked] along the canal after lunch.",
        "The kitten [slept] on my coat all morning.",
        "Our neighbour [forgot] his umbrella at the cinema.",
        "They [painted] the garden fence green last weekend.",
        "The ferry [left] ten minutes ago.",
        "My aunt [wrote] three letters in June.",
        "The old lamp [flickered] and went out.",
    ),
    "present": (
        "The baker [opens] the shop at six every day.",
        "My cousin [plays] chess with her brother on Mondays.",
        "The river [flows] past the old mill.",
        "I [am reading] on the balcony right now.",
        "Bees [collect] nectar from the clover.",
        "He [knows] the way to the station.",
        "The twins [are building] a tower at the moment.",
    ),
    "future": (
        "We [will visit] the castle next spring.",
        "The corner shop [is going to close] at the end of May.",
        "Maya [will bring] the drinks tomorrow.",
        "The whole team [will fly] to Oslo on Friday.",
        "I [am going to learn] the flute next year.",
        "The doctor [will call] you tonight.",
        "The council [will plant] forty trees in autumn.",
    ),
}
