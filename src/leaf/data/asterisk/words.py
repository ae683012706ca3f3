"""Words of the asterisk task in English, French and Italian: what slots may say, and how questions are worded."""

DAYS = {
    "Sunday": ("dimanche", "domenica"),
    "Monday": ("lundi", "lunedì"),
    "Tuesday": ("mardi", "martedì"),
    "Wednesday": ("mercredi", "mercoledì"),
    "Thursday": ("jeudi", "giovedì"),
    "Friday": ("vendredi", "venerdì"),
    "Saturday": ("samedi", "sabato"),
}
MONTHS = {
    "January": ("janvier", "gennaio"),
    "February": ("février", "febbraio"),
    "March": ("mars", "marzo"),
    "April": ("avril", "aprile"),
    "May": ("mai", "maggio"),
    "June": ("juin", "giugno"),
    "July": ("juillet", "luglio"),
    "August": ("août", "agosto"),
    "September": ("septembre", "settembre"),
    "October": ("octobre", "ottobre"),
    "November": ("novembre", "novembre"),
    "December": ("décembre", "dicembre"),
}
# recording stem → (English, what the caller then does, French, Italian)
ACTIONS = {
    "leave": ("leave the conference", "You leave the conference", "quitter la conférence", "lasciare la conferenza"),
    "menu-exit": ("exit the menu", "You exit the menu", "quitter le menu", "uscire dal menu"),
    "mute": (
        "mute or unmute yourself",
        "You mute or unmute yourself",
        "activer ou désactiver votre micro",
        "attivare o disattivare il microfono",
    ),
    "lock": (
        "lock or unlock the conference",
        "You lock or unlock the conference",
        "verrouiller ou déverrouiller la conférence",
        "bloccare o sbloccare la conferenza",
    ),
    "remove-last": (
        "remove the participant who most recently joined the conference",
        "You remove the participant who most recently joined the conference",
        "expulser le dernier participant arrivé dans la conférence",
        "rimuovere l'ultimo partecipante entrato nella conferenza",
    ),
    "dec-list-vol": (
        "decrease the audio volume from other participants",
        "You decrease the audio volume from other participants",
        "baisser le volume des autres participants",
        "abbassare il volume degli altri partecipanti",
    ),
    "inc-list-vol": (
        "increase the audio volume from other participants",
        "You increase the audio volume from other participants",
        "augmenter le volume des autres participants",
        "alzare il volume degli altri partecipanti",
    ),
    "rest-list-vol": (
        "reset the audio volume of the conference to the default level",
        "You reset the audio volume of the conference to the default level",
        "rétablir le volume de la conférence à son niveau par défaut",
        "riportare il volume della conferenza al livello predefinito",
    ),
    "dec-talk-vol": (
        "decrease your speaking volume to other participants",
        "You decrease your speaking volume to other participants",
        "baisser le volume de votre voix pour les autres participants",
        "abbassare il volume della tua voce per gli altri partecipanti",
    ),
    "inc-talk-vol": (
        "increase your speaking volume to other participants",
        "You increase your speaking volume to other participants",
        "augmenter le volume de votre voix pour les autres participants",
        "alzare il volume della tua voce per gli altri partecipanti",
    ),
    "rest-talk-vol": (
        "reset your speaking volume to the default level",
        "You reset your speaking volume to the default level",
        "rétablir le volume de votre voix à son niveau par défaut",
        "riportare il volume della tua voce al livello predefinito",
    ),
}
# recording → (English, French with article, Italian with article, feminine in French and Italian)
FEATURES = {
    "call-forwarding": ("Call forwarding", "Le renvoi d'appel", "Il trasferimento di chiamata", False),
    "call-waiting": ("Call waiting", "Le signal d'appel", "L'avviso di chiamata", False),
    "do-not-disturb": ("Do not disturb", "La fonction ne pas déranger", "La funzione non disturbare", True),
    "speed-dial": ("Speed dial", "La numérotation abrégée", "La composizione rapida", True),
}
STATES = {
    "activated": ("activated", "activé", "attivat"),
    "de-activated": ("de-activated", "désactivé", "disattivat"),
    "cancelled": ("cancelled", "annulé", "annullat"),
}
KEYS = {"star": ("star", "étoile", "asterisco"), "pound": ("pound", "dièse", "cancelletto")}

# question kind → wordings; {} is the subject
QUESTIONS = {
    "transcribe": ("What does the speaker say?", "What do you hear?", "Which words are spoken?"),
    "day": ("Which day is mentioned?", "What day of the week do you hear?", "Which weekday is it?"),
    "date": ("What is the date?", "Which date is mentioned?", "What date do you hear?"),
    "time": ("What time is mentioned?", "At what time is it?", "Which time do you hear?"),
    "new": ("How many new messages do I have?", "How many messages are new?"),
    "old": ("How many old messages do I have?", "How many messages are old?"),
    "urgent": ("How many urgent messages do I have?", "How many messages are urgent?"),
    "key": ("What do I press to {}?", "Which key do I press to {}?", "How do I {}?"),
    "effect": ("What happens if I press {}?", "What does {} do?"),
    "extension": ("Which extension is mentioned?", "What is the extension?"),
    "status": ("Why can I not reach the person?", "What is said about the person?"),
    "position": ("What is my place in the queue?", "Which caller am I?"),
    "hold": ("How long is the estimated hold time?", "How long do I have to wait?"),
    "duration": ("How long does the message last?", "What is the length of the message?"),
    "amount": ("How much is it?", "Which amount was entered?", "How many dollars were entered?"),
    "conference": ("Which conference am I entering?", "What is the conference number?"),
    "participants": ("How many other participants are there?", "How many others are in the conference?"),
    "callers": ("How many callers are waiting?", "How many people are waiting to speak with a representative?"),
    "number": ("What is the telephone number?", "Which telephone number do you hear?"),
    "which": ("Which message is it?", "Is it the first or the last message?"),
    "received": ("When was the message received?", "When did the message arrive?"),
    "feature": ("What is said about the feature?", "Which feature was changed, and how?"),
    "target": ("What is {} set to?", "Where does {} go to?"),
    "spelled": ("What was entered?", "Which characters are spelled?", "What did I enter?"),
    "reach": ("What do I press for the extension?", "Which key takes me to the extension?"),
}
