"""Ten tools with nested schemas, and fifty things to ask that are about them."""

from typing import Any

Schema = dict[str, Any]


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _list(items: Schema, least: int = 1, most: int = 4) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": 40}
DATE: Schema = {"type": "string", "format": "date"}
PLACE = _object(["city"], city=TEXT, country={"type": "string", "pattern": "^[A-Z]{2}$"})
MONEY = _object(
    ["amount", "currency"], amount={"type": "number", "minimum": 0}, currency={"enum": ["EUR", "USD", "GBP"]}
)
PERSON = _object(["name"], name=TEXT, email={"type": "string", "format": "email", "maxLength": 40})
CONTACT: Schema = {"oneOf": [_object(["phone"], phone={"type": "string", "pattern": r"^\+\d{6,12}$"}), PERSON]}
SCHEMAS: dict[str, tuple[str, Schema]] = {
    "get_weather": (
        "The weather forecast of a place.",
        _object(
            ["place", "days"],
            place=PLACE,
            days={"type": "integer", "minimum": 1, "maximum": 14},
            units={"enum": ["metric", "imperial"]},
        ),
    ),
    "book_flight": (
        "Book flights for travellers.",
        _object(
            ["legs", "travellers"],
            legs=_list(_object(["from", "to", "date"], to=PLACE, date=DATE, **{"from": PLACE})),
            travellers=_list(PERSON),
            cabin={"enum": ["economy", "business"]},
        ),
    ),
    "create_event": (
        "Put an event into the calendar.",
        _object(
            ["title", "start"],
            title=TEXT,
            start={"type": "string", "format": "date-time"},
            minutes={"type": "integer", "multipleOf": 5, "minimum": 5, "maximum": 480},
            guests=_list(CONTACT, 0),
        ),
    ),
    "send_message": (
        "Send a text to somebody.",
        _object(
            ["to", "text"],
            to=CONTACT,
            text={"type": "string", "minLength": 1, "maxLength": 80},
            urgent={"type": "boolean"},
        ),
    ),
    "search_shop": (
        "Search products of the shop.",
        _object(
            ["query"],
            query=TEXT,
            price=_object([], least=MONEY, most=MONEY),
            filters={"type": "object", "additionalProperties": TEXT, "maxProperties": 3},
        ),
    ),
    "place_order": (
        "Order products.",
        _object(
            ["lines", "payment"],
            lines=_list(
                _object(
                    ["sku", "count"],
                    sku={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
                    count={"type": "integer", "minimum": 1, "maximum": 99},
                )
            ),
            payment={
                "anyOf": [
                    _object(["card"], card={"type": "string", "pattern": "^[0-9]{4}$"}),
                    _object(["invoice"], invoice=PERSON),
                ]
            },
        ),
    ),
    "run_query": (
        "Read rows of a table.",
        _object(
            ["table"],
            table={"enum": ["users", "orders", "events"]},
            where=_list(
                _object(
                    ["column", "operator", "value"],
                    column=TEXT,
                    operator={"enum": ["=", "<", ">", "like"]},
                    value={"type": ["string", "number", "boolean", "null"], "maxLength": 20},
                ),
                0,
            ),
            limit={"type": "integer", "minimum": 1, "maximum": 1000},
        ),
    ),
    "set_light": (
        "Set lights of rooms.",
        _object(
            ["rooms", "state"],
            rooms=_list({"enum": ["kitchen", "bath", "bedroom", "office"]}),
            state={
                "oneOf": [
                    {"const": "off"},
                    _object(
                        ["brightness"],
                        brightness={"type": "integer", "minimum": 1, "maximum": 100},
                        colour={"type": "string", "pattern": "^#[0-9a-f]{6}$"},
                    ),
                ]
            },
        ),
    ),
    "convert_money": (
        "Convert money.",
        _object(["from", "to"], to={"enum": ["EUR", "USD", "GBP"]}, on=DATE, **{"from": MONEY}),
    ),
    "track_parcel": (
        "Where a parcel is.",
        _object(
            ["number"],
            number={"type": "string", "pattern": "^[A-Z]{2}[0-9]{8}$"},
            notify={
                "type": "array",
                "prefixItems": [{"enum": ["mail", "sms"]}, CONTACT],
                "items": False,
                "minItems": 2,
            },
        ),
    ),
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}
    for name, (description, schema) in SCHEMAS.items()
]
QUESTIONS = """
What will the weather be in Lyon for the next three days?
Is it going to rain in Tokyo tomorrow?
Give me a week's forecast for Boston in Fahrenheit.
How warm will Nairobi be over the next 10 days?
Do I need an umbrella in London on the weekend?
Book a flight from Paris to Rome on 2025-03-04 for Ada Lovelace.
Fly Bob and Carol from Berlin to Oslo on 2025-06-01 and back on 2025-06-08.
I need a business class seat from Madrid to Lisbon on 2025-09-12, my name is Ana Gil.
Two economy tickets from Delhi to Mumbai on 2025-01-20 for Raj and Priya, please.
Get me from Vienna via Zurich to Geneva on 2025-05-05. I am Eva Braun-Meier, eva@example.com.
Put lunch with Grace into my calendar, 2025-02-03 at noon UTC, one hour.
Schedule a design review on 2025-04-10 at 15:00 UTC with max@example.com.
Add "Dentist" on 2025-07-21T08:30:00Z for 45 minutes.
Plan a call with +4915112345 on 2025-03-30 at 9 in the morning UTC.
Create an event: team dinner, 2025-12-19T19:00:00Z, 3 hours.
Text +33612345678 that I will be late.
Tell John Smith (john@example.com) that the report is ready.
Send an urgent message to +14155550100: the server is down!
Let Maria know that dinner is at eight.
Write "Happy birthday!" to Otto.
Find running shoes under 100 euros.
Search for a red lamp between 20 and 50 dollars.
I am looking for a mechanical keyboard, brand Keychron.
Show me wooden desks in oak.
Which coffee grinders do you have below 80 pounds?
Order two AB-123 and one ZX-999, pay with the card ending in 4242.
Buy 10 pieces of QQ-001 on invoice to Jane Doe, jane@example.com.
I want one KL-555. My card ends in 0007.
Please order 3 MM-321, invoice to the ACME office.
Get me 99 of TT-100, card 1111.
Show 10 users whose name is like 'A%'.
Select all orders with total greater than 100.
Give me the latest 50 events.
Which users have active = true?
List orders where status is null, at most 5.
Turn off the lights in the kitchen.
Make the bedroom dim and warm, about 20 percent.
Set office and bath to full brightness in blue (#0000ff).
All lights off please.
Set the kitchen to 75 percent brightness.
How many dollars are 250 euros?
Convert 99.95 GBP to EUR.
What were 1000 USD in pounds on 2024-12-31?
I have 12 euros. How much is that in USD?
Change 5 pounds to dollars.
Where is my parcel AB12345678?
Track ZZ00000001 and text me at +4479460000.
Has parcel QK87654321 arrived yet? Mail Tim about it, tim@example.com.
Locate shipment CD11112222.
Find out where EF99998888 is.
""".strip().splitlines()
