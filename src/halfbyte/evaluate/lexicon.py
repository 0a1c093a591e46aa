"""Small word lists, written here: what rules need to tell function words and languages apart.

They are meant for shares over an answer, not for single words: a rule without a dictionary errs.
"""

from __future__ import annotations

from typing import Final


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


ENGLISH: Final = _set(
    "a about above after again against all also although always am among an and another any are "
    "around as at away back be because been before being below between both but by can cannot "
    "come could did do does doing done down during each either else even ever every few first for "
    "from further get gets give given go goes had has have having he her here hers herself him "
    "himself his how however i if in instead into is it its itself just know last least less let "
    "like made make makes many may me might mine more most much must my myself need needs never "
    "next no nor not now of off often on once one only onto or other others our ours out over own "
    "per please put rather really said same say see shall she should since so some still such take "
    "than that the their theirs them themselves then there therefore these they thing things this "
    "those though through thus to together too toward two under until up upon us use used using "
    "very was way we well were what when where whether which while who whole whom whose why will "
    "with within without would yes yet you your yours yourself"
)
GERMAN: Final = _set(
    "aber alle als am an auch auf aus bei bin bis da damit dann das dass dem den der des die dies "
    "diese dieser du ein eine einem einen einer eines er es für hat haben ich ihr im in ist ja "
    "kann kein keine man mehr mein mit nach nicht noch nur oder ohne schon sehr sein sich sie sind "
    "so über um und uns unter vom von vor war was wenn wer wie wir wird zu zum zur"
)
FRENCH: Final = _set(
    "alors après au aux avec avoir ce cela ces cette comme dans de des deux donc du elle elles en "
    "est et être eux fait il ils je la le les leur lui mais même mes mon ne nos notre nous on ont "
    "ou où par pas plus pour qu que qui sa sans se ses si son sont sur tout tous très tu un une "
    "vos votre vous"
)
SPANISH: Final = _set(
    "al algo como con cual cuando de del desde donde dos el ella ellas ellos en entre era es esa "
    "ese eso esta este esto fue ha hay la las le les lo los más me mi muy no nos o para pero por "
    "porque que quien se ser si sin sobre son su sus también te tiene todo todos un una uno y ya yo"
)
HINGLISH: Final = _set(
    "aaj aaja aap aapka aapke aapki aapko aapne aaye aayega ab abhi accha acchi achha achhi agar "
    "agla agle agli aisa aise aisi aj aka aur aya baad bad bahot bahut baje baki bana banaa "
    "banaaye banaiye banao banaya banaye band bata bataiye batao bataye batayen bhai bhej bheje "
    "bhejen bheji bhejiye bhejo bhi bohot boliye bolo chahata chahiye chahta chahte chahti chala "
    "chalao chalaye chalega chaliye chalo chalu chhod chuka dala dalo dekh dekha dekhao dekhe "
    "dekhna dekho dena denge deta dete di didi dijiye dikha dikhaiye dikhao dikhaye dikhayen diya "
    "diye dobara doosra doosre dost doston duniya dusra dusre dusri ek gaana gaane gaano gana "
    "gane gano gaya gaye gayi ghanta ghante ghar haan hafte hai hain hamara hamare hamari hamein "
    "hamesha han hata hataiye hatao hataye hoga hoge hogi hona hone honge hota hote hoti hua hue "
    "hui hume humein humko humne ise isi iska iske iski isko isme itna jaa jaana jaane jaata jab "
    "jaldi janmadin janna jao jata jate jati jawab jaye jayega jayegi jis jise jiska jiske jitna "
    "jode joden jodiye jodo jyada ka kaam kab kabhi kafi kaha kahaan kahan kahi kahin kaho kahte "
    "kaisa kaise kaisi kal kam kar kara karao karaye karda karde karden kardo kare karega karein "
    "karen karenge kariye karke karna karne karni karo karta karte karti karu karun karwa kaun "
    "kaunsa kaunse kaunsi ke khana khane kharid khatam kholo khula ki kijiye kisi kisko kitna "
    "kitne kitni kiya kiye ko koi kon konsa konse konsi kripaya kuch kuchh kya kyaa kyo kyon "
    "kyonki kyu kyun laga lagaen lagaiye lagao lagaye lagega lagta lakin lekin lena lenge leta li "
    "lijiye liya liye log logon maine matlab maujood mausam mein meine mera mere meri mil mila "
    "mile milega milna milte mita mujhe mujhko mujhse naam nahi nahin naya naye nayi ne nikalo "
    "paas padh padho pahla pahle pahli pata pehla pehle pehli pichhle pichla pichle pichli plz "
    "poocho pucho pura puri raat raha rahe rahega rahegi rahi rakh rakhe rakhna rakho rat rehta "
    "rok roke roken rokey rokiye rokna roko rukh ruko saal saath sab sabhi sabse sakta sakte "
    "sakti sakun samay sath se shaam sham shukriya shuru sirf soch subah suna sunaiye sunao "
    "sunaye sunna tak taki tarah tarikh tatha teen tera tere teri tha theek thi thik thoda "
    "tumhara tumhare tumhe tumko usi uska uske uski usko usme usne vala vale vali vapas vo voh "
    "wahan wala wale wali wapas wo woh ya yaad yad yaha yahan yahi ye yeh zyada"
)
# words of both languages: the language of the nearest clear neighbour decides
HINGLISH_OR_ENGLISH: Final = _set(
    "are ban bat bus do din hi ho hum in is jo la main man me na par pass sub so tab the to tum un "
    "us mat ate le de sun band bad log pass rat aka plz dost par"
)
LANGUAGES: Final = {
    "english": ENGLISH,
    "german": GERMAN,
    "french": FRENCH,
    "spanish": SPANISH,
    "hinglish": HINGLISH - HINGLISH_OR_ENGLISH,
}
# words that begin sentences or stand in headings in capitals without being names
NOT_NAMES: Final = ENGLISH | _set(
    "answer step steps question example examples note first second third finally also however "
    "therefore thus hence next then so because let i i'm i'll i've i'd final context passage text "
    "definition summary solution given explanation response instruction sure certainly yes no "
    "total"
)
