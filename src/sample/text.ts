import type {Random} from './random.ts'

/** A text twice: as a TEXT column holds it, and as it stands between the quotes of the app's ASCII-only JSON. */
export type Passage = {
  readonly plain: string
  readonly escaped: string
}

/** Words for everything a sample says. Sentences are made once and reused, so that a million messages are quick. */
export type Phrasebook = {
  readonly word: () => string
  /** @returns two to five words, each with a capital; sometimes with an emoji before them. */
  readonly title: () => string
  readonly sentence: () => Passage
  /** @returns sentences up to about `chars` characters: at least one. */
  readonly passage: (chars: number) => Passage
}

const words =
  `about access account answer archive arrange balance batch before bridge bright budget build carry change channel
  chapter check choose clear client cluster compare compile connect copper count crystal current data define delay
  deliver depend design detail develop device digest direct discuss draft driver early editor effect engine enough
  entry error evening example exchange expect explain export factor feature field filter final folder follow forest
  format forward frame garden gather general gentle glass grade grammar graph green handle harbour header history
  hundred image import improve include index inform inside invoice journal kernel keyboard kitchen label language
  ladder lantern latency layer ledger letter library limit linear local logic machine manual margin matter measure
  memory message method middle migrate minute mirror model modern morning mountain narrow network notebook number
  object offer orange order outline output oxygen packet paper parser pattern person picture planet plain pocket
  policy portal prepare print private process product profile prompt public python quality query question quiet
  random reader reason record reduce region release repair replace report request reserve result return review
  river rotate round sample schedule schema screen script search season second section select server session shadow
  signal silver simple single sketch socket source spiral stable station storage stream string structure summary
  surface switch system table target teacher template thread ticket timber today token tomorrow total travel trigger
  tunnel update useful value vector version vessel village visible volume walnut weather weekly window winter within
  wonder workflow yellow yesterday zone`.split(/\s+/)

const emoji = ['🧠', '🚀', '📊', '☕', '🐍', '🗺️', '✅', '👩‍💻', '🇩🇪', '🔥']

/** Whole sentences of the kinds that break naive pipelines: quoting, control characters, scripts, widths. */
const awkward = [
  'tab\there, CRLF\r\nhere, backslash \\ quote \' double " percent % $$ ; -- /* */',
  '\\N \\. \\\\x00 {{CLIPBOARD}} ${HOME} `rm -rf` <script>alert("x")</script> &amp;',
  'Größe, naïve, coöperate, Ærøskøbing, łódź, İstanbul, ﬁne.',
  '请用简单的话解释数据库索引的区别。',
  '인덱스와 제약 조건의 차이를 설명해 주세요.',
  'اشرح لي الفرق بين قواعد البيانات من فضلك.',
  'הסבר לי בבקשה את ההבדל בין מסדי נתונים.',
  'Объясни, пожалуйста, чем индекс отличается от ключа?',
  'e\u0301 is not é, a\u00a0no-break space, a zero\u200bwidth one, a\u2028line separator.',
  '```sql\nselect "a", \'b\'\nfrom t -- "why"\nwhere c like \'%\\_%\'\n```',
  '| a | b |\n|---|---|\n| 1 | $\\frac{1}{2}$ |',
  '- first\n- second\n\t- nested\n',
  '🤖 👩‍👩‍👧‍👦 🏳️‍🌈 𝒳 𠮷',
]

/** @returns a phrasebook; the same stream of chance gives the same one. */
export function phrasebook(chance: Random): Phrasebook {
  const word = () => chance.pick(words)
  const pool: readonly Passage[] = Array.from({length: 3000}, (_, i) => {
    const plain = i % 8 === 0 ? chance.pick(awkward) : plainSentence(chance, word)
    return passageOf(plain)
  })
  const sentence = () => chance.pick(pool)

  return {
    word,
    sentence,
    title: () => {
      const name = Array.from({length: 2 + chance.below(4)}, () => capital(word())).join(' ')
      return chance.chance(0.2) ? `${chance.pick(emoji)} ${name}` : name
    },
    passage: chars => {
      let {plain, escaped} = sentence()
      while (plain.length < chars) {
        const more = sentence()
        const isNewLine = chance.chance(0.15)
        plain += (isNewLine ? '\n' : ' ') + more.plain
        escaped += (isNewLine ? '\\n' : ' ') + more.escaped
      }
      return {plain, escaped}
    },
  }
}

/** @returns `plain` with its JSON form beside it. */
export function passageOf(plain: string): Passage {
  return {plain, escaped: asciiJson(plain).slice(1, -1)}
}

/** @returns JSON as the app writes it: Python's spacing, and every character beyond ASCII as `\uXXXX`. */
export function asciiJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(asciiJson).join(', ')}]`
  if (typeof value === 'object' && value !== null) {
    const entries = Object.entries(value).filter(([, member]) => member !== undefined)
    return `{${entries.map(([name, member]) => `${asciiJson(name)}: ${asciiJson(member)}`).join(', ')}}`
  }
  return JSON.stringify(value).replace(
    /[\u007f-\uffff]/g,
    unit => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
}

function plainSentence(chance: Random, word: () => string): string {
  const said = Array.from({length: 4 + chance.below(11)}, word).join(' ')
  const ended = capital(said) + chance.pick(['.', '.', '.', '!', '?'])
  if (chance.chance(0.1)) return `"${ended}"`
  return chance.chance(0.1) ? `${ended} ${chance.pick(emoji)}` : ended
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1)
}
