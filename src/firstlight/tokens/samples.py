"""Short texts of many scripts and kinds, to see what a tokenizer makes of each. Written for this project."""

from __future__ import annotations

SAMPLES: dict[str, str] = {
    "English prose": (
        "The ferry left at half past six, when the harbour was still dark and the gulls had not yet begun to quarrel. "
        "Only four passengers were on deck. One of them, a tall woman with a green suitcase, counted the lights along "
        "the shore until the last of them was gone, and then she laughed, quietly, as if she had won something."
    ),
    "English dialogue": (
        '"You\'re late," said Ben. "I\'ve been here since nine, and it\'s raining!"\n'
        "\"I know, I know. They wouldn't let me go. Didn't you get my note?\"\n"
        "\"What note? I don't think I'd have waited if I'd had one.\""
    ),
    "Python code": (
        "def moving_average(values: list[float], width: int) -> list[float]:\n"
        '    """Mean of each window of `width` neighbours."""\n'
        "    if width < 1:\n"
        '        raise ValueError(f"width={width} must be at least 1")\n'
        "    total = sum(values[:width])\n"
        "    means = [total / width]\n"
        "    for old, new in zip(values, values[width:]):\n"
        "        total += new - old\n"
        "        means.append(total / width)\n"
        "    return means\n"
    ),
    "JSON": (
        '{"id": 4711, "name": "harbour-3", "tags": ["tide", "wind"], "position": {"lat": 54.3213, "lon": 10.1349},\n'
        ' "readings": [{"t": "2026-03-01T06:00:00Z", "level_m": 0.42}, {"t": "2026-03-01T07:00:00Z", "level_m": null}]}'
    ),
    "Mathematics": (
        r"Let $f(x) = \frac{1}{\sqrt{2\pi}} e^{-x^2/2}$. Then $\int_{-\infty}^{\infty} f(x)\,dx = 1$, "
        r"and for $n \ge 1$ we have $\mathbb{E}[X^{2n}] = (2n-1)!!$, so the variance is 1. ∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε."
    ),
    "Numbers": (
        "3.14159265358979 2.71828182845905 1.41421356237310\n1024 2048 4096 65536 16777216\n"
        "2026-11-25 13:45:07, +49 30 901820, 1,234,567.89 EUR, 0x7fffffff, 6.022e23, 99.95 %\n"
    ),
    "German": (
        "Am Morgen nach dem Sturm lagen überall Äste auf der Straße, und die Feuerwehr räumte schon seit fünf Uhr. "
        "Die Straßenbahn fuhr nicht; wer zur Arbeit musste, ging zu Fuß oder wartete auf den Ersatzverkehr."
    ),
    "French": (
        "L'été dernier, nous avons loué une petite maison près de la forêt. Le soir, on entendait les chouettes, et "
        "mon frère prétendait qu'il savait leur répondre ; personne n'a jamais vérifié s'il disait vrai."
    ),
    "Spanish": (
        "¿Quién dejó la ventana abierta? El gato había pasado la noche en el tejado y por la mañana volvió empapado, "
        "con una pluma en la boca y ningún remordimiento."
    ),
    "Russian": (
        "Зимой река замерзала так крепко, что по ней ездили на санях. Дети катались с горы до темноты, а потом долго "
        "сушили варежки у печки и рассказывали друг другу страшные истории."
    ),
    "Greek": (
        "Το καράβι έφυγε νωρίς το πρωί, όταν η θάλασσα ήταν ακόμη ήρεμη. Ο καπετάνιος κοίταξε τον ουρανό και είπε πως "
        "θα βρέξει πριν από το μεσημέρι."
    ),
    "Arabic": (
        "وصل القطار متأخرا ساعة كاملة، فجلسنا في المقهى القديم قرب المحطة وشربنا الشاي بالنعناع. قال صديقي إن الانتظار "
        "جزء من السفر، وإن من لا يعرف الصبر لا يرى الطريق."
    ),
    "Hebrew": (
        "בבוקר ירד גשם חזק, והרחוב התמלא שלוליות. הילדים קפצו מעל המים בדרך לבית הספר, והמורה צחקה כשראתה את הנעליים הרטובות."
    ),
    "Hindi": (
        "बारिश के बाद गाँव की हवा में मिट्टी की खुशबू फैल गई। बच्चे कागज़ की नावें बनाकर पानी में छोड़ने लगे, और दादी "
        "ने सबके लिए गरम पकौड़े बनाए।"
    ),
    "Thai": "เช้าวันนี้ฝนตกหนัก ถนนหน้าบ้านจึงมีน้ำท่วมเล็กน้อย แม่บอกว่าให้รอสักครู่ก่อนออกไปตลาด แล้วเราก็นั่งดื่มกาแฟด้วยกัน",
    "Chinese": (
        "清晨的市场已经热闹起来了。卖鱼的老人把水桶放在路边,一边吆喝一边和熟人打招呼。我买了两个热包子,站在桥上慢慢吃,"
        "看着船一只接一只地从河面上经过。"
    ),
    "Japanese": (
        "駅前の小さな本屋は、今年で創業五十年になるそうだ。店主のおばあさんはコーヒーをいれながら、昔の常連客の話をしてくれた。"
        "雨の日には、猫のミケもレジの横で眠っている。"
    ),
    "Korean": (
        "오늘 아침에는 안개가 짙어서 강 건너편이 전혀 보이지 않았다. 할머니는 시장에서 사 온 감을 깎아 주시며, 안개 낀 날은 "
        "오후에 꼭 맑아진다고 말씀하셨다."
    ),
    "Emoji": "Good morning! ☀️😀 Party at 8 🎉🎂🥳 bring 🍕 & 🥤 👨‍👩‍👧‍👦 👍🏽 🇫🇷🇯🇵🇧🇷 ❤️‍🔥 see you 👋🏿🐕‍🦺",
    "Blanks and line ends": "a\n\n\n\tb\t\tc    d        e\r\n\r\n    if x:\n        if y:\n            z\n\n\n   \n end  \n",
    "Letters at random": "xqzvkw jfhbtp qqlrmz wvxkcj zpdnhg tbqxvf kzjwqm hgvxlp rnqzkd fwjxtv bcmqzp lkvhxj",
    "Base64": "UG9ydHMgYW5kIHRpZGVzOiBhIHNtYWxsIGFsbWFuYWMgZm9yIHRoZSB5ZWFyIDIwMjYsIHZvbHVtZSBJSQ==",
}
