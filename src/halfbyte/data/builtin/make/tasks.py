"""More sentences to classify, by label: messages, school tasks, claims, small problems."""

from __future__ import annotations

from typing import Final

OPERATIONS: Final = {
    "addition": (
        "Six frogs sit on a log and two more [join them].",
        "Zoe has 4 stickers, gets 9 more and wants the [total].",
        "Count the shells [altogether] in a pile of 8 and a pile of 5.",
        "A jar held 30 beans and [gains] 12 beans.",
        "Two classes of 20 and 25 pupils [come together] for a trip.",
    ),
    "subtraction": (
        "There were 15 buns and 6 were eaten; find how many [are left].",
        "Find how many [more] pencils than pens there are: 11 pencils, 7 pens.",
        "A rope of 9 metres [is shortened] by 4 metres.",
        "Omar had 20 coins and [gave away] 8 of them.",
        "Find the [difference] between two heights, 140 cm and 128 cm.",
    ),
    "multiplication": (
        "There are 6 boxes with 4 crayons [in each]; count the crayons.",
        "A ticket costs 3 dollars; find the price [of 7 tickets].",
        "Each spider has 8 legs; count the legs [of 5 spiders].",
        "The garden has 7 [rows of 9] cabbages; count the cabbages.",
        "A tap drips 4 [times every second] for 6 seconds.",
    ),
    "division": (
        "The 18 grapes are [shared equally] by 3 children.",
        "Cut a ribbon of 20 metres into 5 [equal pieces].",
        "Sort 24 players into [teams of 6] and count the teams.",
        "Please [split] a bill of 40 dollars between 4 friends.",
        "Pack 30 eggs [into boxes of 6] and count the boxes.",
    ),
}

MESSAGES: Final = {
    "question": (
        "[What time] does the pool open on Sunday?",
        "[Which bus] goes to the airport?",
        "[How long] is the warranty on this drill?",
        "[Where] can I park near the theatre?",
        "[Who] teaches the pottery class this year?",
        "[When] will the red shoes be back in stock?",
    ),
    "complaint": (
        "The heater you sold me is [broken again].",
        "My order came in the [wrong size], and I am annoyed.",
        "It is [unacceptable] that nobody picked up the phone.",
        "The music next door [keeps me awake] every night.",
        "I was [charged twice] for one ticket.",
        "The lift has been [out of order] for a month.",
    ),
    "thanks": (
        "I am [so grateful] for your help with the move.",
        "[Many thanks] for the flowers; they are lovely.",
        "[Thank you] for fixing my bike so quickly.",
        "Your kind note cheered me up, [thanks again].",
        "We [really appreciate] the extra chairs you lent us.",
        "[Thanks a million] for looking after the cat.",
    ),
    "request": (
        "[Please send] me a copy of the receipt.",
        "[Please move] my appointment to Tuesday.",
        "[Please water] the plants while I am away.",
        "[Please book] two seats by the window.",
        "[Kindly forward] this letter to Mrs Hale.",
        "[Please add] my sister to the guest list.",
    ),
}

CLAIMS: Final = {
    "fact": (
        "Water [boils at 100 degrees Celsius] at sea level.",
        "A week has [seven days].",
        "The river Nile [flows through Egypt].",
        "A spider has [eight legs].",
        "Japan is [made up of islands].",
        "A triangle has [three sides].",
        "A year on Earth lasts [about 365 days].",
        "The metal mercury is [liquid at room temperature].",
        "An adult usually has [32 teeth].",
        "Iron [rusts] in damp air.",
    ),
    "opinion": (
        "Cats make [better] pets than dogs.",
        "Winter is the [most beautiful] season.",
        "Everyone [should] learn to dance.",
        "Blue is the [nicest] colour for a bedroom.",
        "Homework on Fridays is [boring].",
        "Old films are [more fun] than new ones.",
        "Mushrooms on pizza taste [awful].",
        "That bridge is [too ugly] to photograph.",
        "Football is the [greatest] game of all.",
        "Sunday evenings feel [sad] to me.",
    ),
}

SUBJECTS: Final = {
    "maths": (
        "Find the [area of a rectangle] 4 cm by 9 cm.",
        "Write three [fractions] equal to one half.",
        "Work out the [average] of five test marks.",
        "Measure the largest [angle] of the triangle.",
        "List the first six [prime numbers].",
        "Solve the [equation] x + 5 = 12.",
    ),
    "science": (
        "Explain how a [magnet] attracts iron filings.",
        "Label the [roots and stem] of a bean plant.",
        "Test which [electric circuit] lights the bulb.",
        "Explain why the [heart] beats faster when we run.",
        "Name the [planets] nearest to the Sun.",
        "Observe how a [chemical reaction] makes bubbles.",
    ),
    "history": (
        "Why did the [Roman army] build long straight roads?",
        "Describe daily life in a [medieval castle].",
        "Who ruled [ancient Egypt] when the pyramids were built?",
        "Put these [kings and queens] in order of their reigns.",
        "What changed in towns during the [Industrial Revolution]?",
        "Read a letter from a soldier of the [First World War].",
    ),
    "art": (
        "Mix [blue and yellow paint] and describe the colour.",
        "Sketch a [portrait] of your neighbour in charcoal.",
        "Shape a small bowl from [clay] and decorate it.",
        "Cut out shapes for a paper [collage].",
        "Shade the [drawing] so that the ball looks round.",
        "Design a [poster] with bold colours and large letters.",
    ),
}

MAIL: Final = {
    "spam": (
        "You have [won a million dollars], click here now!",
        "[Claim your free phone] before midnight, limited offer!",
        "Hot deal!!! [Lose ten kilos in a week] with one pill.",
        "Your account is locked, [send us your password] at once.",
        "[Earn 5000 a day] from your sofa with no work!",
        "Dear friend, a prince [wants to share his fortune] with you.",
        "Your number was drawn, [pay a small fee] to get the prize.",
        "Gold watches [90 percent off], buy buy buy!",
        "[Double your coins] in an hour, just send them to this wallet.",
    ),
    "genuine": (
        "Hi Sam, are we [still meeting] at the cafe at four?",
        "The [minutes of the meeting] on Tuesday are attached.",
        "Your [library book] is due back on Friday.",
        "Mum, I [missed the bus] and will be home at six.",
        "The dentist [confirms your visit] on 3 May at 9.",
        "Could you mail me [the slides] before class?",
        "The [parents' evening] moves to room 12.",
        "Happy birthday, Nora! [See you at dinner].",
        "Your [bicycle is repaired] and ready to collect.",
    ),
}
