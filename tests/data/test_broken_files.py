"""Broken data files, each written to disk and read as training reads it: the message says where and what, in at most 5 lines."""

import codecs
import gzip
import io
import json
import time
from dataclasses import dataclass

import pyarrow
import pytest
from pyarrow import parquet

from ltune.data.formats import rows_of
from ltune.data.formats.values import NEEDS
from ltune.data.rows import Chat, Pair, Rated, Row, Text
from ltune.data.sources import resolve
from ltune.errors import UsageError

GOOD = '{"instruction": "hi", "output": "Hello!"}\n'
ASK, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}
HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "Hello!"}


@dataclass
class Broken:
    """A file and what is said about it; paths are shown from the file's folder."""

    what: str
    name: str
    content: bytes | str
    said: str
    rows: type[Row] = Chat


def talk(*messages, **columns):
    return json.dumps({"messages": list(messages), **columns}) + "\n"


def shared(*messages, **columns):
    return json.dumps({"conversations": list(messages), **columns}) + "\n"


def table(kind, rows, kept=None):
    file, made = io.BytesIO(), pyarrow.Table.from_pylist(rows)
    if kind == "parquet":
        parquet.write_table(made, file)
    else:
        with pyarrow.ipc.new_stream(file, made.schema) as stream:
            stream.write_table(made)
    return file.getvalue()[:kept]


ROWS = [{"instruction": "hi " * 50, "output": "Hello!"}] * 40
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]}
BAD_CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{a: 1}"}}]}

ORDER = "the roles must be user, assistant, user, assistant ..., after at most one system message;\n"

# fmt: off
FILES = [
    # -- lines of JSON
    Broken("an object that ends too early", "a.jsonl", GOOD + '{"instruction": "hi", "output": \n' + GOOD,
           "a.jsonl:2: malformed JSON: Expecting value (column 32), got the end."),
    Broken("a line that is no JSON", "a.jsonl", GOOD + "hello\n",
           "a.jsonl:2: malformed JSON: Expecting value (column 1), got 'hello'."),
    Broken("single quotes", "a.jsonl", GOOD + "{'instruction': 'hi'}\n",
           "a.jsonl:2: malformed JSON: Expecting property name enclosed in double quotes (column 2), got \"'instruction': 'hi'}\"."),
    Broken("a line cut off in a text", "a.jsonl", GOOD + '{"instruction": "hi", "outp',
           "a.jsonl:2: malformed JSON: Unterminated string starting at (column 23), got '\"outp'."),
    Broken("a trailing comma in an object", "a.jsonl", GOOD + '{"instruction": "hi", "output": "x",}\n',
           "a.jsonl:2: malformed JSON: a comma stands before the closing mark (column 37), got '}'."),
    Broken("a comma behind a row", "a.jsonl", GOOD.replace("\n", ",\n") + GOOD,
           "a.jsonl:1: malformed JSON: a comma stands after the value; a line is one value."),
    Broken("two rows on a line", "a.jsonl", GOOD + GOOD.strip() + GOOD,
           "a.jsonl:2: malformed JSON: something follows the value: "
           "'{\"instruction\": \"hi\", \"output\": \"Hello!\"'; a line is one value."),
    Broken("a NaN", "a.jsonl", GOOD + '{"instruction": "hi", "output": NaN}\n',
           "a.jsonl:2: malformed JSON: NaN is no JSON; write null or a number."),
    Broken("a negative infinity", "a.jsonl", GOOD + '{"instruction": "NaN", "output": "x", "score": -Infinity}\n',
           "a.jsonl:2: malformed JSON: -Infinity is no JSON; write null or a number."),
    Broken("a key given twice", "a.jsonl", GOOD + '{"instruction": "hi", "output": "x", "output": "y"}\n',
           'a.jsonl:2: malformed JSON: the key "output" is given twice.'),
    Broken("a key given twice in a message", "a.jsonl", '{"messages": [{"role": "user", "role": "system", "content": "x"}]}\n',
           'a.jsonl:1: malformed JSON: the key "role" is given twice.'),
    Broken("an array for a row", "a.jsonl", GOOD + "[1, 2]\n",
           "a.jsonl:2: a row must be an object of columns; got [1, 2]."),
    Broken("a text for a row", "a.jsonl", GOOD + '"hi"\n',
           "a.jsonl:2: a row must be an object of columns; got 'hi'."),
    Broken("null for a row", "a.jsonl", GOOD + "null\n",
           "a.jsonl:2: a row must be an object of columns; got None."),
    Broken("objects nested too deeply", "a.jsonl", GOOD + '{"instruction": ' + "[" * 100_000 + "\n",
           "a.jsonl:2: malformed JSON: arrays or objects stand too deeply in each other."),
    Broken("a number that is too long", "a.jsonl", GOOD + '{"instruction": ' + "9" * 5000 + "}\n",
           "a.jsonl:2: malformed JSON: Exceeds the limit (4300 digits) for integer string conversion."),
    Broken("a raw line end in a text", "a.jsonl", GOOD + '{"instruction": "a\tb", "output": "x"}\n',
           "a.jsonl:2: malformed JSON: Invalid control character at (column 19), got 'b\", \"output\": \"x\"}'."),
    Broken("a raw null byte", "a.jsonl", GOOD + '{"instruction": "a\0b", "output": "x"}\n',
           "a.jsonl:2: malformed JSON: Invalid control character at (column 19), got '\\x00b\", \"output\": \"x\"}'."),
    Broken("a bad escape", "a.jsonl", GOOD + '{"instruction": "a\\xb", "output": "x"}\n',
           "a.jsonl:2: malformed JSON: Invalid \\escape (column 19), got '\\\\xb\", \"output\": \"x\"}'."),
    Broken("an array in a file of lines", "a.jsonl", f"[\n{GOOD}]\n",
           "a.jsonl:1: the file is one JSON array, not an object a line.\n"
           "Name it  a.json"),
    Broken("an error behind a line of 10 MB", "a.jsonl",
           json.dumps({"instruction": "hi", "output": "word " * 2_000_000}) + "\n" + GOOD + "}\n",
           "a.jsonl:3: malformed JSON: Expecting value (column 1), got '}'."),
    Broken("a broken line of 10 MB", "a.jsonl", GOOD + '{"instruction": "' + "word " * 2_000_000 + "\n",
           "a.jsonl:2: malformed JSON: Unterminated string starting at (column 17), got '\"word word word word wor'."),
    # -- encodings, and files of nothing
    Broken("UTF-16 with its mark", "a.jsonl", GOOD.encode("utf-16"),
           "a.jsonl:1: the file is UTF-16, not UTF-8.\n"
           "Save it anew:  iconv -f UTF-16 -t UTF-8 a.jsonl > utf8-a.jsonl"),
    Broken("UTF-16 without a mark", "a.json", f"[{GOOD}]".encode("utf-16-le"),
           "a.json:1: the file is UTF-16, not UTF-8.\n"
           "Save it anew:  iconv -f UTF-16 -t UTF-8 a.json > utf8-a.json"),
    Broken("UTF-32", "a.csv", "instruction,output\nhi,x\n".encode("utf-32"),
           "a.csv:1: the file is UTF-32, not UTF-8.\n"
           "Save it anew:  iconv -f UTF-32 -t UTF-8 a.csv > utf8-a.csv"),
    Broken("Latin-1", "a.jsonl", GOOD.encode() + '{"instruction": "ä", "output": "x"}\n'.encode("latin-1"),
           "a.jsonl:2: not UTF-8 text: invalid continuation byte (byte 0xe4)."),
    Broken("a character cut in half", "a.json", b'[\n{"instruction": "\xe2\x82", "output": "x"}]',
           "a.json:2: not UTF-8 text: invalid continuation byte (byte 0xe2)."),
    Broken("an empty file of lines", "a.jsonl", "",
           "a.jsonl: the file is empty: it has no rows."),
    Broken("nothing but blank lines", "a.jsonl", "\n  \n\r\n\n",
           "a.jsonl: the file is empty: it has no rows."),
    Broken("an empty array", "a.json", "[ ]",
           "a.json: the file is empty: it has no rows."),
    Broken("an empty JSON file", "a.json", "",
           "a.json: the file is empty: it has no rows."),
    Broken("nothing but a byte order mark", "a.jsonl", codecs.BOM_UTF8,
           "a.jsonl: the file is empty: it has no rows."),
    # -- arrays
    Broken("an array that is not closed", "a.json", f"[{GOOD},\n{GOOD}",
           "a.json:4: malformed JSON: the file ends before the array does (column 1), got the end."),
    Broken("an array cut off in a row", "a.json", f"[{GOOD},\n{GOOD[:20]}",
           "a.json:3: malformed JSON: Expecting ',' delimiter (column 21), got the end."),
    Broken("a comma before the closing bracket", "a.json", f"[{GOOD},\n]",
           "a.json:3: malformed JSON: a comma stands before the closing mark (column 1), got ']'."),
    Broken("no comma between rows", "a.json", f"[{GOOD}{GOOD}]",
           "a.json:2: malformed JSON: Expecting ',' or ']' (column 1), got '{\"instruction\": \"hi\", \"o'."),
    Broken("something behind the array", "a.json", f"[{GOOD}]\n{GOOD}",
           "a.json:3: malformed JSON: Nothing may follow the closing ']' (column 1), got '{\"instruction\": \"hi\", \"o'."),
    Broken("a number in an array", "a.json", f"[{GOOD}, 3]",
           "a.json row 2: a row must be an object of columns; got 3."),
    Broken("a key given twice in an array", "a.json", f'[{GOOD}, \n{{"instruction": "hi", "instruction": "ho", "output": "x"}}]',
           'a.json:3: malformed JSON: the key "instruction" is given twice.'),
    Broken("one object for the whole file", "a.json", '{\n "data": [\n  {"instruction": "hi", "output": "x"}\n ]\n}\n',
           "a.json: the file holds one object; it must be an array of objects, or an object a line."),
    # -- tables and packed files
    Broken("a parquet file cut off", "a.parquet", table("parquet", ROWS, -20),
           "a.parquet: malformed parquet: …"),
    Broken("a text named parquet", "a.parquet", GOOD,
           "a.parquet: malformed parquet: …"),
    Broken("a parquet file of no rows", "a.parquet", table("parquet", ROWS[:0] or [{}]),
           "a.parquet: the file is empty: it has no rows."),
    Broken("a parquet file with null in the answer", "a.parquet", table("parquet", [*ROWS, {"instruction": "hi", "output": None}]),
           "a.parquet row 41: output must be text; got None."),
    Broken("an arrow file cut off", "a.arrow", table("arrow", ROWS, 300),
           "a.arrow: malformed arrow: …"),
    Broken("a CSV row of too few fields", "a.csv", "instruction,output\nhi,x\nhi\n",
           "a.csv:3: the row has 1 fields and the header 2."),
    Broken("a CSV row of too many fields", "a.csv", "instruction,output\nhi,well, hello\n",
           "a.csv:2: the row has 3 fields and the header 2."),
    Broken("a CSV quote that is not closed", "a.csv", 'instruction,output\nhi,x\n"hi,x\nhi,x\n',
           "a.csv:3: malformed CSV: unexpected end of data; the row begins there."),
    Broken("a CSV column named twice", "a.csv", "instruction,output,output\nhi,x,y\n",
           "a.csv:1: the header names the column 'output' twice."),
    Broken("a CSV file of other separators", "a.csv", "instruction;output\nhi;x\n",
           "a.csv:1: the header is one column, 'instruction;output'; columns are separated by commas, not ';'."),
    Broken("a CSV file with nothing but a header", "a.csv", "instruction,output\n",
           "a.csv: the file is empty: it has no rows."),
    Broken("a null byte in CSV", "a.csv", "instruction,output\nh\0i,x\n",
           "a.csv:2: holds a null byte, which is no text."),
    Broken("a null byte in a text file", "a.txt", "one\nt\0wo\n",
           "a.txt:2: text holds a null character, which is no text.", Text),
    Broken("a gzip file cut off", "a.jsonl.gz", gzip.compress(GOOD.encode() * 1000, mtime=0)[:-30],
           "a.jsonl.gz: not a whole gzip file: Compressed file ended before the end-of-stream marker was reached"),
    Broken("a text named gz", "a.jsonl.gz", GOOD,
           "a.jsonl.gz: not a whole gzip file: Not a gzipped file (b'{\"')"),
    # -- columns
    Broken("columns of no format", "a.jsonl", '{"question": "hi", "answer": "x"}\n',
           "a.jsonl:1: no known format has the columns question, answer.\n" + NEEDS),
    Broken("columns of two formats", "a.jsonl", talk(ASK, ANSWER, instruction="hi", output="x"),
           "a.jsonl:1: the columns fit openai (messages) and alpaca (instruction).\n"
           "The row has messages, instruction, output.\n"
           "Say which is meant with the data set's  format  (and columns, which name all that is read)."),
    Broken("conversations and messages", "a.jsonl", talk(ASK, ANSWER, conversations=[HUMAN, GPT]),
           "a.jsonl:1: the columns fit sharegpt (conversations) and openai (messages).\n"
           "The row has messages, conversations.\n"
           "Say which is meant with the data set's  format  (and columns, which name all that is read)."),
    Broken("rows of another format", "a.jsonl", GOOD + talk(ASK, ANSWER),
           "a.jsonl:2: alpaca needs the column instruction; the row has messages.\n" + NEEDS),
    Broken("messages of another format", "a.jsonl", talk(ASK, ANSWER) + talk(HUMAN, GPT),
           "a.jsonl:2: message 1 must have role and content; got from, value.\n"
           "Other names can be given in the data set's tags: role_tag, content_tag."),
    Broken("no answer", "a.jsonl", '{"instruction": "hi", "input": ""}\n',
           "a.jsonl:1: alpaca needs the column output; the row has instruction, input.\n" + NEEDS),
    Broken("an answer that is null", "a.jsonl", '{"instruction": "hi", "output": null}\n',
           "a.jsonl:1: output must be text; got None."),
    Broken("a question that is a number", "a.jsonl", '{"instruction": 3, "output": "x"}\n',
           "a.jsonl:1: instruction must be text; got 3."),
    Broken("an empty question", "a.jsonl", '{"instruction": "", "input": "", "output": "x"}\n',
           "a.jsonl:1: instruction is empty."),
    Broken("a history of texts", "a.jsonl", '{"instruction": "hi", "output": "x", "history": ["a", "b"]}\n',
           "a.jsonl:1: history must be a list of [question, answer] pairs; got 'a'."),
    Broken("plain text for conversations", "a.jsonl", '{"text": "once"}\n',
           "a.jsonl:1: the data set has plain text, the objective trains on conversations.\n"
           "Use  --model.objective Pretrain , or a data set of conversations."),
    Broken("conversations for plain text", "a.jsonl", talk(ASK, ANSWER),
           "a.jsonl:1: the data set has conversations (openai), the objective trains on plain text.\n"
           "Use  --model.objective SFT , or a data set with a text column.", Text),
    Broken("pairs for conversations", "a.jsonl", '{"prompt": "hi", "chosen": "x", "rejected": "y"}\n',
           "a.jsonl:1: the data set has pairs of answers (chosen, rejected), the objective trains on single ones.\n"
           "To train on the better ones alone, name them in the data set's columns, for example  {prompt: prompt, response: chosen}"),
    Broken("half a surrogate pair", "a.jsonl", '{"instruction": "half \\ud83d", "output": "x"}\n',
           "a.jsonl:1: instruction holds half a surrogate pair, which is no character."),
    Broken("a null character", "a.jsonl", '{"instruction": "a\\u0000", "output": "x"}\n',
           "a.jsonl:1: instruction holds a null character, which is no text."),
    Broken("an image beside the text", "a.jsonl", '{"instruction": "What is it?", "output": "x", "images": ["a.png"]}\n',
           "a.jsonl:1: the row brings images (column images); the model reads text only.\n"
           "Remove such rows."),
    Broken("columns with escapes in their names", "a.jsonl", '{"in\\u001b[31m": 1, "o\\nut": 2}\n',
           "a.jsonl:1: no known format has the columns 'in\\x1b[31m', 'o\\nut'.\n" + NEEDS),
    # -- conversations
    Broken("no messages", "a.jsonl", talk(),
           "a.jsonl:1: messages is empty: it has no messages."),
    Broken("messages that are a text", "a.jsonl", '{"messages": "hi"}\n',
           "a.jsonl:1: messages must be a list of messages; got 'hi'."),
    Broken("a message that is a text", "a.jsonl", '{"messages": ["hi"]}\n',
           "a.jsonl:1: message 1 must have role and content; got 'hi'.\n"
           "Other names can be given in the data set's tags: role_tag, content_tag."),
    Broken("a message without content", "a.jsonl", talk({"role": "user"}, ANSWER),
           "a.jsonl:1: message 1 must have role and content; got role.\n"
           "Other names can be given in the data set's tags: role_tag, content_tag."),
    Broken("an empty message", "a.jsonl", talk({"role": "user", "content": ""}, ANSWER),
           "a.jsonl:1: message 1 is empty."),
    Broken("an answer without content or call", "a.jsonl", talk(ASK, {"role": "assistant", "content": None}),
           "a.jsonl:1: message 2 must be text; got None."),
    Broken("an unknown role", "a.jsonl", shared({"from": "robot", "value": "hi"}, GPT),
           "a.jsonl:1: message 1 has the role 'robot'; known are human, gpt, system.\n"
           "Other names can be given in the data set's tags: user_tag, assistant_tag, system_tag, function_tag, observation_tag."),
    Broken("a conversation that the assistant begins", "a.jsonl", shared(GPT, HUMAN, GPT),
           "a.jsonl:1: " + ORDER + "message 1 breaks this; got ['assistant', 'user', 'assistant']."),
    Broken("two questions in a row", "a.jsonl", talk(ASK, ASK, ANSWER),
           "a.jsonl:1: " + ORDER + "message 2 breaks this; got ['user', 'user', 'assistant']."),
    Broken("a conversation that ends with a question", "a.jsonl", talk(ASK, ANSWER, ASK),
           "a.jsonl:1: the conversation must end with the assistant; its last message is the user's."),
    Broken("two system messages", "a.jsonl", talk({"role": "system", "content": "a"}, {"role": "system", "content": "b"}, ASK, ANSWER),
           "a.jsonl:1: message 2 is a second system message; a conversation has one, at its beginning."),
    Broken("a system message in the middle", "a.jsonl", talk(ASK, ANSWER, {"role": "system", "content": "b"}, ASK, ANSWER),
           "a.jsonl:1: " + ORDER + "message 3 breaks this; got ['user', 'assistant', 'system', 'user', 'assistant']."),
    Broken("two system texts", "a.jsonl", talk({"role": "system", "content": "a"}, ASK, ANSWER, system="b"),
           "a.jsonl:1: there are two system texts: a column, and the first message, which says something else."),
    Broken("a tool call that is not JSON", "a.jsonl",
           shared(HUMAN, {"from": "function_call", "value": "add(1, 2)"}, {"from": "observation", "value": "3"}, GPT),
           "a.jsonl:1: message 2, a tool call: not JSON: Expecting value; got 'add(1, 2)'."),
    Broken("a tool call without a name", "a.jsonl",
           shared(HUMAN, {"from": "function_call", "value": '{"arguments": {}}'}, {"from": "observation", "value": "3"}, GPT),
           "a.jsonl:1: message 2: a tool call is {\"name\": ..., \"arguments\": {...}}; got {'arguments': {}}."),
    Broken("arguments that are not JSON", "a.jsonl", talk(ASK, BAD_CALL, {"role": "tool", "content": "1"}, ANSWER),
           "a.jsonl:1: message 2: the arguments of add: not JSON: Expecting property name enclosed in double quotes; got '{a: 1}'."),
    Broken("a tool call that is not answered", "a.jsonl", talk(ASK, CALL, ASK, ANSWER),
           "a.jsonl:1: message 3 must be the result of the tool call before it;\n"
           "got ['user', 'assistant', 'user', 'assistant']."),
    Broken("a tool's result that was not asked for", "a.jsonl", talk(ASK, {"role": "tool", "content": "1"}, ANSWER),
           "a.jsonl:1: message 2 is a tool's result, and no tool was called before it;\n"
           "got ['user', 'tool', 'assistant']."),
    Broken("tools that are not JSON", "a.jsonl", talk(ASK, ANSWER, tools="add(a, b)"),
           "a.jsonl:1: tools: not JSON: Expecting value; got 'add(a, b)'."),
    Broken("an image in a message", "a.jsonl",
           talk({"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER),
           "a.jsonl:1: message 1 brings image_url; the model reads text only.\n"
           "Remove such rows."),
    # -- pairs and rated answers
    Broken("a pair without its better half", "a.jsonl", '{"prompt": "hi", "completion": "x", "rejected": "y"}\n',
           "a.jsonl:1: a pair needs the column chosen; the row has prompt, completion, rejected.\n" + NEEDS, Pair),
    Broken("answers to different questions", "a.jsonl",
           json.dumps({"chosen": [ASK, ANSWER], "rejected": [{"role": "user", "content": "ho"}, ANSWER]}) + "\n",
           "a.jsonl:1: chosen and rejected must be the same conversation up to the last message, "
           "or a prompt must stand before them.", Pair),
    Broken("a mark that is none", "a.jsonl", '{"prompt": "hi", "completion": "x", "label": "good"}\n',
           "a.jsonl:1: label must be true or false; got 'good'.", Rated),
]
# fmt: on


def said_about(folder, broken):
    file = folder / broken.name
    file.write_bytes(broken.content if isinstance(broken.content, bytes) else broken.content.encode())
    with pytest.raises(UsageError) as error:
        list(rows_of(resolve(str(file), folder), broken.rows))
    return str(error.value).replace(f"{folder}/", "")


@pytest.mark.parametrize("broken", FILES, ids=lambda broken: broken.what)
def test_a_broken_file_is_told_with_its_place(tmp_path, broken):
    message = said_about(tmp_path, broken)
    if broken.said.endswith("…"):  # what follows is Arrow's own
        assert message.startswith(broken.said[:-1])
    else:
        assert message == broken.said
    assert len(message.splitlines()) <= 5
    assert all(line.isprintable() for line in message.splitlines())  # nothing of a row may steer the terminal


def test_there_are_sixty_and_none_twice():
    assert len({(broken.name, broken.content) for broken in FILES}) == len({broken.what for broken in FILES}) == len(FILES) >= 60


FINE = [
    ("a byte order mark", "a.jsonl", codecs.BOM_UTF8 + GOOD.encode(), 1),
    ("Windows line ends", "a.jsonl", GOOD.replace("\n", "\r\n") * 2, 2),
    ("blank lines", "a.jsonl", f"\n{GOOD}\n  \n{GOOD}\n\n", 2),
    ("no line end at the end", "a.jsonl", GOOD + GOOD.rstrip(), 2),
    ("a line of 10 MB", "a.jsonl", json.dumps({"instruction": "hi", "output": "word " * 2_000_000}) + "\n" + GOOD, 2),
    ("line separators in a text", "a.jsonl", json.dumps({"instruction": "a\u2028b\x85c", "output": "x"}, ensure_ascii=False) + "\n", 1),
    ("a surrogate pair", "a.jsonl", '{"instruction": "\\ud83d\\ude00", "output": "x"}\n', 1),
]


@pytest.mark.parametrize(("what", "name", "content", "rows"), FINE, ids=[case[0] for case in FINE])
def test_what_is_unusual_and_not_wrong_is_read(tmp_path, what, name, content, rows):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert len(list(rows_of(resolve(str(file), tmp_path), Chat))) == rows


def test_the_first_error_in_a_long_file_is_told_at_once(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(GOOD * 1000 + "{broken\n" + GOOD * 999_000)
    begin = time.perf_counter()
    with pytest.raises(UsageError, match=r"a\.jsonl:1001: malformed JSON"):
        list(rows_of(resolve(str(file), tmp_path), Chat))
    assert time.perf_counter() - begin < 2
