"""Science facts: a question with two choices; then two steps | of thought | the answer."""

from __future__ import annotations

from typing import Final

SCIENCE: Final = """
What do plants take in from the air to make sugar: carbon dioxide or helium?
  Leaves take in a gas through tiny holes. | They join it with water in sunlight. | carbon dioxide
What is the making of sugar from light called: photosynthesis or erosion?
  Photo is light, synthesis is putting together. | Green leaves do this all day. | photosynthesis
Which planet is closest to the Sun: Mercury or Neptune?
  The nearest planet has the shortest year. | One trip of Mercury takes only 88 days. | Mercury
Which planet is famous for its wide rings: Saturn or Mars?
  Rings are made of ice and rock. | Saturn's are bright enough for a small telescope. | Saturn
Which force pulls a dropped ball to the ground: gravity or friction?
  Masses attract each other. | The Earth pulls the ball down. | gravity
Which force slows a sliding book: friction or gravity?
  Two surfaces rub against each other. | Rubbing takes energy from the book. | friction
Which organ pumps blood: heart or liver?
  Blood must be pushed through the body. | A strong muscle in the chest beats for that. | heart
Which organs take oxygen from the air: lungs or kidneys?
  Air goes down the windpipe. | Tiny sacs pass oxygen to the blood. | lungs
Which organs clean the blood and make urine: kidneys or lungs?
  Blood carries waste. | Two bean-shaped organs filter it out. | kidneys
What do we call animals without a backbone: invertebrates or vertebrates?
  A vertebra is a bone of the back. | The prefix in- means without, as in worms. | invertebrates
What do we call an animal that eats only plants: herbivore or carnivore?
  Herba is Latin for grass. | A cow eats grass. | herbivore
What is an animal that eats other animals: carnivore or herbivore?
  Carnis is Latin for meat. | A lion eats meat. | carnivore
What changes water into vapour: heating or freezing?
  Vapour needs energy. | Heating gives energy to the water. | heating
What is the change from liquid to solid called: freezing or melting?
  A liquid that gets cold enough turns hard. | Water does this at 0 degrees Celsius. | freezing
What is the change from solid to liquid called: melting or freezing?
  Heat loosens the particles of a solid. | Ice turns to water this way. | melting
What is the change from gas to liquid called: condensation or evaporation?
  A gas that cools forms drops. | Dew on grass forms this way. | condensation
Which part of a plant takes up water: roots or petals?
  Water is in the soil. | The part in the soil must take it up. | roots
Which part of a flower attracts insects: petals or roots?
  Insects look for colour. | The coloured leaves of a flower are seen from far. | petals
Which is a good conductor of electricity: copper or rubber?
  Metals let electric current pass. | Wires are made of this metal. | copper
Which material is a good insulator: rubber or silver?
  An insulator stops electric current. | Cables are coated with it. | rubber
Which is attracted by a magnet: iron or wood?
  Only a few metals are magnetic. | Nails of this metal stick to a magnet. | iron
Which travels faster: light or sound?
  Light goes about 300,000 km in a second. | We see lightning before we hear thunder. | light
What carries sound to our ears: air or a vacuum?
  Sound is a wave that needs matter. | An empty space has no matter. | air
Which gas do we need to breathe: oxygen or helium?
  Cells burn food to get energy. | Burning needs this part of the air. | oxygen
Which gas makes up most of the air: nitrogen or oxygen?
  Oxygen is about 21 percent. | The larger part, 78 percent, is another gas. | nitrogen
Which star gives the Earth its light: the Sun or Sirius?
  The nearest star is the brightest for us. | It lies 150 million km away. | the Sun
What causes day and night: the Earth's spin or the Moon?
  The Earth turns once in 24 hours. | One half faces the Sun, the other is dark. | the Earth's spin
What causes the tides most of all: the Moon or the wind?
  Gravity pulls at the oceans. | The nearest large body pulls most. | the Moon
What is hot liquid rock under the ground called: magma or granite?
  Deep rock can melt. | It becomes lava when a volcano throws it out. | magma
Which scale measures temperature: Celsius or litre?
  Temperature says how hot a thing is. | Water freezes at 0 on this scale. | Celsius
Which tool measures temperature: thermometer or ruler?
  Thermo means heat. | Meter means measure. | thermometer
Which tool shows very small things: microscope or telescope?
  Micro means small. | Cells are seen with it. | microscope
Which tool shows far things in the sky: telescope or microscope?
  Tele means far. | Moons of Jupiter are seen with it. | telescope
Which animal turns from a caterpillar: butterfly or beetle?
  A caterpillar rests in a pupa. | Wings with scales come out of it. | butterfly
What does a tadpole become: frog or fish?
  A tadpole has gills and a tail at first. | It grows legs and loses the tail. | frog
Which bones protect the brain: skull or ribs?
  The brain is in the head. | The bones of the head form a shell. | skull
Which bones protect the lungs: ribs or skull?
  The lungs lie in the chest. | A cage of curved bones is around them. | ribs
Which sense uses the ears: hearing or taste?
  Ears catch sound waves. | Noticing sound is this sense. | hearing
Which food group builds muscles most: protein or sugar?
  Muscles are made of building blocks. | Beans, eggs and fish are rich in them. | protein
Which vitamin is known from oranges and lemons: C or D?
  Sailors without fruit fell ill. | Citrus fruit healed them. | C
What is the smallest unit of life: cell or organ?
  Organs are built of tissues. | Tissues are built of still smaller living parts. | cell
What is the sign for water in chemistry: H2O or CO2?
  Water has two parts hydrogen. | It has one part oxygen. | H2O
Which energy comes from moving air: wind energy or coal?
  Moving air turns blades. | The blades turn a generator. | wind energy
Which is a renewable source of energy: sunlight or oil?
  Renewable means it does not run out. | Oil took millions of years to form. | sunlight
Which rock comes from cooled lava: basalt or limestone?
  Lava that cools turns hard and dark. | Limestone comes from shells instead. | basalt
Which mineral is the hardest: diamond or chalk?
  A harder mineral scratches a softer one. | Nothing in nature scratches this one. | diamond
Which colour does a leaf reflect: green or red?
  We see the light that is reflected. | Leaves look like this colour. | green
Which body lies at the centre of the solar system: the Sun or the Earth?
  Planets move around the heaviest body. | It holds over 99 percent of all the mass. | the Sun
What is a baby plant inside a shell called: seed or stem?
  It has a store of food. | With water and warmth it sprouts. | seed
What does a bee carry from flower to flower: pollen or salt?
  Flowers make a yellow powder. | It sticks to the hairs of the bee. | pollen
Which layer of gas protects us from ultraviolet light: ozone or steam?
  It lies high in the atmosphere. | It is a form of oxygen. | ozone
Which simple machine is a ramp: inclined plane or pulley?
  A ramp is a sloping surface. | Inclined means sloping. | inclined plane
Which simple machine is a seesaw: lever or wheel?
  A bar turns about a point. | A long arm moves a heavy load. | lever
Which unit measures force: newton or metre?
  Force is a push or pull. | The unit honours a scientist who studied gravity. | newton
Which unit measures electric voltage: volt or gram?
  A battery pushes current. | The unit honours Volta, who built a battery. | volt
What is frozen rain in hard balls called: hail or fog?
  Drops freeze inside a storm cloud. | They fall as balls of ice. | hail
"""
