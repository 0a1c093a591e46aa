"""History facts: a question with two choices; then two steps | of thought | the answer."""

from __future__ import annotations

from typing import Final

HISTORY: Final = """
Who built the great pyramids of Giza: the Egyptians or the Vikings?
  The pyramids stand beside the Nile. | The Nile flows through Egypt. | the Egyptians
Which people came from Scandinavia in longships: the Vikings or the Aztecs?
  Scandinavia lies in the north of Europe. | Sailors raided and traded from about 800. | the Vikings
In which city did the Colosseum rise: Rome or Athens?
  It was opened in the year 80. | Roman emperors held games there. | Rome
Where did the first Olympic Games take place: Greece or China?
  They were held at Olympia. | Olympia is a Greek place. | Greece
Who first printed books with movable type in Europe: Gutenberg or Galileo?
  It happened in Mainz about 1450. | A goldsmith cast letters of metal there. | Gutenberg
In which year did Columbus reach America: 1492 or 1815?
  He sailed for Spain. | It was at the end of the 15th century. | 1492
In which year did people first walk on the Moon: 1969 or 1903?
  Apollo 11 carried three astronauts. | That was in the late 1960s. | 1969
Who was the first person on the Moon: Neil Armstrong or Yuri Gagarin?
  Apollo 11 landed in 1969. | Its commander stepped out first. | Neil Armstrong
Who was the first person in space: Yuri Gagarin or Neil Armstrong?
  The flight was in 1961. | A Soviet pilot circled the Earth once. | Yuri Gagarin
In which year did the Second World War end: 1945 or 1918?
  It began in 1939. | It lasted six years. | 1945
In which year did the First World War begin: 1914 or 1939?
  It lasted four years. | It ended in 1918. | 1914
In which year did the Berlin Wall fall: 1989 or 1961?
  It had stood for 28 years. | It was built in 1961. | 1989
Who discovered penicillin: Alexander Fleming or Isaac Newton?
  In 1928 mould killed germs in a dish. | A Scottish doctor noticed it. | Alexander Fleming
Who described gravity with a law: Isaac Newton or Marco Polo?
  The law was printed in 1687. | An English scientist wrote it. | Isaac Newton
Who travelled from Venice to China: Marco Polo or Isaac Newton?
  The journey began in 1271. | A merchant's son told of it in a book. | Marco Polo
Who studied radium and won two Nobel Prizes: Marie Curie or Florence Nightingale?
  She worked in Paris. | Her prizes were for physics and chemistry. | Marie Curie
Who improved nursing in the Crimean War: Florence Nightingale or Marie Curie?
  The war was in the 1850s. | She was called the lady with the lamp. | Florence Nightingale
Who led India to freedom without violence: Gandhi or Napoleon?
  India became free in 1947. | He marched to the sea for salt in 1930. | Gandhi
Who became emperor of the French in 1804: Napoleon or Gandhi?
  He was a general first. | He lost at Waterloo in 1815. | Napoleon
Who was the first president of the United States: George Washington or Abraham Lincoln?
  He took office in 1789. | He had led the army before. | George Washington
Which president declared the slaves of the rebel states free: Abraham Lincoln or George Washington?
  It was during the Civil War. | That war lasted from 1861 to 1865. | Abraham Lincoln
Who became president of South Africa in 1994: Nelson Mandela or Gandhi?
  He had been in prison for 27 years. | He fought against apartheid. | Nelson Mandela
Which ship sank in 1912 after hitting ice: Titanic or Mayflower?
  It was on its first voyage. | It was the largest ship of its time. | Titanic
Which ship carried the Pilgrims in 1620: Mayflower or Titanic?
  They sailed from Plymouth. | The small wooden ship reached Cape Cod. | Mayflower
Which wall was built to guard China: the Great Wall or Hadrian's Wall?
  It runs for thousands of kilometres. | Emperors kept out riders from the north. | the Great Wall
Which wall did the Romans build in Britain: Hadrian's Wall or the Great Wall?
  Hadrian was a Roman emperor. | It was begun in the year 122. | Hadrian's Wall
Which people built Machu Picchu: the Inca or the Romans?
  It lies high in the Andes. | Their empire was in Peru. | the Inca
Which city did Mount Vesuvius bury in 79: Pompeii or Paris?
  The volcano stands near Naples. | Ash covered the Roman town. | Pompeii
What did James Watt improve: the steam engine or the telephone?
  His work was in the 1760s and 1770s. | It drove pumps and mills. | the steam engine
What did Alexander Graham Bell patent in 1876: the telephone or the steam engine?
  He taught deaf pupils and studied sound. | His device carried a voice by wire. | the telephone
What did the Wright brothers fly in 1903: an aeroplane or a balloon?
  It had two wings and an engine. | It was heavier than air. | an aeroplane
Which material gave the Bronze Age its name: bronze or iron?
  Tools were cast from copper and tin. | That mixture has a name. | bronze
What did people write on in ancient Egypt: papyrus or plastic?
  A reed grows beside the Nile. | Its stems were pressed to sheets. | papyrus
What did knights wear in battle: armour or silk?
  Swords and arrows hurt. | Metal plates protect the body. | armour
What was traded on the Silk Road from China: silk or potatoes?
  The road has its name from the goods. | Fine cloth was made from cocoons. | silk
What was the plague of 1347 called: the Black Death or the Red Tide?
  It spread with rats and fleas. | It killed about a third of Europe. | the Black Death
Who painted the Mona Lisa: Leonardo da Vinci or Mozart?
  It was painted soon after 1500. | An Italian painter and inventor made it. | Leonardo da Vinci
Which composer wrote music at the age of five: Mozart or Leonardo da Vinci?
  He was born in Salzburg in 1756. | He composed The Magic Flute later. | Mozart
Which queen ruled Egypt with Caesar as an ally: Cleopatra or Victoria?
  Caesar died in 44 BC. | She was the last queen of Egypt. | Cleopatra
Which queen ruled Britain from 1837 to 1901: Victoria or Cleopatra?
  Her reign lasted 63 years. | The age is named after her. | Victoria
Which document of 1215 limited the king of England: Magna Carta or the Iliad?
  King John had to seal it. | Its name means great charter. | Magna Carta
Which day of 1776 is on the American declaration: 4 July or 1 May?
  The colonies left Britain. | Americans still celebrate it in summer. | 4 July
Which empire used Latin: the Roman Empire or the Inca Empire?
  Latin was spoken in Italy. | Soldiers carried it through Europe. | the Roman Empire
Which sea route did Vasco da Gama find: to India or to Australia?
  He left Lisbon in 1497. | He sailed around Africa and bought spices. | to India
"""
