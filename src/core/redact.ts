/**
 * Hides what looks like a password in text that a person or a log will see: in `scheme://user:password@host` and in
 * `password=…`. Takes too much rather than too little, since a password may hold any of the characters around it.
 */
export function redact(text: string): string {
  return text
    .replace(/(:\/\/[^\s:/@"'<>]*):[^\s"'<>]*@/g, '$1:***@')
    .replace(/\b(password|passwd|pwd)=(?!\*\*\*)[^\s"'&]+/gi, '$1=***')
}
